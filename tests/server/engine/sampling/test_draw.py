"""Draws against transformers' own warpers and against their own probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polygraft.server.engine.messages import Sampling
from polygraft.server.engine.sampling.draw import draw, kept, uniform

EDGE = 1e-5  # transformers runs in float64 here; ours rounds weights to float32


def random_logits(size: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def warped(logits: np.ndarray, sampling: Sampling, *, margin: float = 0.0) -> np.ndarray:
    """Probabilities by transformers, the most likely first; a positive margin keeps more."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(min(1.0, max(0.0, sampling.top_p + margin))))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(min(1.0, sampling.min_p * (1 - margin))))
    scores = torch.from_numpy(logits).double()[None]
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), scores)[0]
    return np.sort(scores.softmax(-1).numpy())[::-1]


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Ours, by token id."""
    ids, weights = kept(logits, sampling)
    result = np.zeros(len(logits))
    result[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return result


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.05, 0.3, 1.0, 2.5, 8.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.6, 0.05]) | st.floats(0.01, 1.0),
    top_k=st.sampled_from([0, 1, 7, 2000]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]) | st.floats(0.001, 1.0),
)


@settings(max_examples=400, deadline=None)
@given(
    sampling=samplings,
    size=st.sampled_from([3, 50, 5000]),
    scale=st.sampled_from([0.01, 1.0, 6.0]),
    seed=st.integers(0, 1 << 30),
    has_ties=st.booleans(),
    num_masked=st.sampled_from([0, 2]),
)
def test_kept_tokens_and_weights_equal_transformers(
    sampling: Sampling, size: int, scale: float, seed: int, has_ties: bool, num_masked: int
) -> None:
    logits = random_logits(size, seed, scale)
    if has_ties:  # as bfloat16 has them
        logits = torch.from_numpy(logits).bfloat16().float().numpy()
    logits[:num_masked] = -np.inf
    ours = np.sort(probabilities(logits, sampling))[::-1]
    # A token on the edge may fall on either side for rounding; nothing else may differ.
    margins = (0.0, -EDGE, EDGE)
    assert any(np.allclose(ours, warped(logits, sampling, margin=m), atol=1e-6) for m in margins)


def test_of_equal_tokens_at_the_edge_of_top_p_the_lowest_ids_stay() -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[7] = 1.0
    ids, _ = kept(logits, Sampling(1.0, top_p=0.5))
    assert ids is not None
    assert ids.tolist() == [0, 1, 2, 3, 7]  # e / (9 + e) = 0.232, each other one 0.085


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.3),
        Sampling(0.8, top_p=0.9),
        Sampling(1.2, top_p=0.95, top_k=9, min_p=0.02),
    ],
    ids=["temperature", "top_p", "all"],
)
def test_100000_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits = random_logits(12, seed=1)
    seeded = [replace(sampling, seed=seed) for seed in (0, 1, 2**53)]
    draws = [draw(logits, one, position=p) for one in seeded for p in range(33_334)]
    expected = probabilities(logits, sampling) * len(draws)
    observed = np.bincount(draws, minlength=12)
    assert not observed[expected == 0].any()
    possible = expected > 0
    chi_square = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    # 99.9 % point of chi-square with at most 11 degrees of freedom
    assert chi_square < 31.3


def test_draws_from_a_large_vocabulary_follow_the_distribution() -> None:
    logits = random_logits(49_152, seed=4)
    draws = np.array([draw(logits, Sampling(1.0, seed=s), position=9) for s in range(20_000)])
    expected = probabilities(logits, Sampling(1.0))
    edges = np.searchsorted(np.cumsum(expected), np.arange(1, 16) / 16)
    counts = np.histogram(draws, [0, *edges + 1, len(logits)])[0]
    mass = np.add.reduceat(expected, [0, *edges + 1]) * len(draws)
    assert ((counts - mass) ** 2 / mass).sum() < 37.7  # 99.9 % point, 15 degrees of freedom


def test_a_draw_depends_on_seed_and_position_only() -> None:
    logits = random_logits(1000, seed=2)
    first = [draw(logits, Sampling(1.0, seed=5), position=p) for p in range(50)]
    again = [draw(logits, Sampling(1.0, seed=5), position=p) for p in range(50)]
    other = [draw(logits, Sampling(1.0, seed=6), position=p) for p in range(50)]
    assert first == again
    assert first != other
    assert len(set(first)) > 20


def test_an_impossible_token_is_never_drawn() -> None:
    logits = np.full(1000, -np.inf, dtype=np.float32)
    logits[[3, 700]] = 1.0
    for sampling in (Sampling(2.0), Sampling(0.001), Sampling(1.0, 0.99, 500, min_p=0.001)):
        drawn = {draw(logits, sampling, position=p) for p in range(200)}
        assert drawn == {3, 700}


def test_neighbouring_seeds_and_positions_are_unrelated() -> None:
    grid = np.array([[uniform(seed, position) for position in range(64)] for seed in range(64)])
    assert len(np.unique(grid)) == grid.size
    assert np.abs(np.corrcoef(grid) - np.eye(64)).max() < 0.6
    assert abs(grid.mean() - 0.5) < 0.02
