"""Sampling against transformers' own logits processors and against its own probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polygraft.server.engine.messages import Sampling
from polygraft.server.engine.sampler import _kept, sample, token_logprob


def random_logits(size: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 2000])
def test_kept_tokens_and_weights_equal_transformers(
    size: int, scale: float, temperature: float, top_p: float, top_k: int
) -> None:
    logits = random_logits(size, seed=size + top_k, scale=scale)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    scores = torch.from_numpy(logits).double()[None]
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), scores)[0].softmax(-1).numpy()
    order, weights = _kept(
        logits.astype(np.float64) / temperature, Sampling(temperature, top_p, top_k)
    )
    probabilities = np.zeros(size)
    probabilities[order] = weights / weights.sum()
    np.testing.assert_allclose(probabilities, expected, atol=1e-9)


def test_draws_follow_the_distribution() -> None:
    logits = random_logits(12, seed=1)
    sampling = [Sampling(0.8, 0.9, 0, seed=s) for s in range(20)]
    draws = [sample(logits, s, position=p) for s in sampling for p in range(1000)]
    order, weights = _kept(logits.astype(np.float64) / 0.8, sampling[0])
    expected = np.zeros(12)
    expected[order] = weights / weights.sum() * len(draws)
    observed = np.bincount(draws, minlength=12)
    assert not observed[expected == 0].any()
    kept = expected > 0
    chi_square = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    # 99.9 % point of chi-square with at most 11 degrees of freedom
    assert chi_square < 31.3


def test_a_draw_depends_on_seed_and_position_only() -> None:
    logits = random_logits(1000, seed=2)
    first = [sample(logits, Sampling(1.0, seed=5), position=p) for p in range(50)]
    again = [sample(logits, Sampling(1.0, seed=5), position=p) for p in range(50)]
    other = [sample(logits, Sampling(1.0, seed=6), position=p) for p in range(50)]
    assert first == again
    assert first != other
    assert len(set(first)) > 20


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.zeros(100, dtype=np.float32)
    logits[[90, 17, 44]] = 3.0
    assert sample(logits, Sampling(), position=0) == 17


def test_logprob_equals_log_softmax() -> None:
    logits = random_logits(3000, seed=3, scale=10)
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    for token in (0, 7, 2999):
        entry = token_logprob(logits, token, 0)
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
