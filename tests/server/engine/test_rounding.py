"""What bfloat16 and 8-bit weights cost in quality on the bundled base: teacher-forced, beside the
packed float32 engine.

Every position of held-out texts sees the same tokens before it, so that one different token does
not make all others differ. The figures stand in docs/benchmarks.md.
"""

from __future__ import annotations

import random

import pytest
import torch
from engine_support.harness import Harness
from torch import Tensor

from polygraft.trainer.tasks.dialogues import make_dialogue
from polygraft.trainer.tasks.stories import make_story

NUM_TEXTS = 48
CONFIDENT = 0.6  # float32 probability from which the likeliest token must stay the likeliest


def texts(count: int) -> list[str]:
    """Stories and dialogues about people whose names training never saw."""
    rng = random.Random(0)
    makers = (make_story, make_dialogue)
    return [makers[i % 2](rng, held_out=True).text for i in range(count)]


def teacher_forced(**settings: object) -> Tensor:
    """Logits [positions, vocab_size] of every position of the texts but their last."""
    harness = Harness("builtin:nano", **settings)
    for i, text in enumerate(texts(NUM_TEXTS)):
        ids = harness.engine.tokenizer(text).input_ids[:200]
        harness.submit(str(i), ids, max_output_tokens=0, score_from=1)
    harness.run()
    return torch.cat([torch.stack(harness.answers[str(i)].logits) for i in range(NUM_TEXTS)])


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return teacher_forced(dtype="float32")


def figures_of(rounded: Tensor, exact: Tensor) -> dict[str, float]:
    error = (rounded - exact).norm(dim=1) / exact.norm(dim=1)
    expected = exact.log_softmax(-1)
    divergence = (expected.exp() * (expected - rounded.log_softmax(-1))).sum(-1)
    agrees = rounded.argmax(-1) == exact.argmax(-1)
    is_confident = expected.amax(-1).exp() >= CONFIDENT
    return {
        "positions": len(error),
        "error_mean": float(error.mean()),
        "error_max": float(error.max()),
        "divergence_mean": float(divergence.mean()),
        "agreement": float(agrees.float().mean()),
        "confident": int(is_confident.sum()),
        "confident_agreement": float(agrees[is_confident].float().mean()),
    }


@pytest.mark.parametrize(
    ("dtype", "weight_format", "error_mean", "error_max", "divergence_mean", "agreement"),
    [
        ("bfloat16", "packed", 0.01, 0.04, 2e-4, 0.97),
        ("float32", "int8", 0.03, 0.10, 1e-3, 0.96),
        ("bfloat16", "int8", 0.03, 0.10, 1e-3, 0.96),
    ],
)
def test_rounding_keeps_the_distribution(
    exact: Tensor,
    dtype: str,
    weight_format: str,
    error_mean: float,
    error_max: float,
    divergence_mean: float,
    agreement: float,
) -> None:
    figures = figures_of(teacher_forced(dtype=dtype, weight_format=weight_format), exact)
    print(dtype, weight_format, figures)  # `pytest -s` shows them
    assert figures["positions"] > 2000
    assert figures["confident"] > 1000
    assert figures["error_mean"] <= error_mean
    assert figures["error_max"] <= error_max
    assert figures["divergence_mean"] <= divergence_mean
    assert figures["agreement"] >= agreement
    assert figures["confident_agreement"] == 1.0


def test_the_texts_tell_good_from_bad(exact: Tensor) -> None:
    """Weights rounded to far fewer bits than bfloat16 has would pass none of the bounds."""
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    worse = exact + noise * exact.norm(dim=1, keepdim=True) / exact.shape[1] ** 0.5 * 0.08
    agrees = worse.argmax(-1) == exact.argmax(-1)
    assert float(agrees.float().mean()) < 0.97
