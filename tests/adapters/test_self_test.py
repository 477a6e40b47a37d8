"""The comparison alone: what is right passes by a hair, what is wrong is refused for its reason."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.probes import Probes, pad_inputs
from polygraft.adapters.self_test import Observed, compare_with_probes

COUNT, VOCAB = 8, 40


def make(effect: float = 1.0, margin: float = 1.0) -> Probes:
    """Probes of an adapter that moves log-probabilities by about `effect`."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(COUNT, 8, VOCAB, generator=generator)
    adapted = base + effect * torch.randn(COUNT, 8, VOCAB, generator=generator)
    top = adapted.log_softmax(-1).topk(32)
    input_ids, input_len = pad_inputs([range(8)] * COUNT)
    return Probes(
        input_ids=input_ids,
        input_len=input_len,
        top_ids=top.indices.int(),
        top_logprobs=top.values,
        base_top_logprobs=base.log_softmax(-1).gather(-1, top.indices),
        greedy_ids=torch.randint(VOCAB, (COUNT, 16), generator=generator).int(),
        greedy_margin=torch.full((COUNT, 16), margin),
    )


def noise(size: float) -> Tensor:
    """Of that root mean square."""
    drawn = torch.randn(COUNT, 8, 32, generator=torch.Generator().manual_seed(1))
    return size * drawn / drawn.square().mean().sqrt()


def observed(
    probes: Probes,
    *,
    base: Tensor | float = 0.0,
    adapter: Tensor | float = 0.0,
    greedy: Sequence[Sequence[int]] | None = None,
) -> Observed:
    """The probes' own numbers with these errors."""
    return Observed(
        probes.base_top_logprobs + base,
        probes.top_logprobs + adapter,
        probes.greedy_ids.tolist() if greedy is None else greedy,
    )


def test_equal_numbers_are_a_proof() -> None:
    proof = compare_with_probes(make(), observed(make()), is_exact=True)
    assert proof.proven
    assert all(check.passed for check in proof.checks)
    assert len(proof.checks) == 4


def test_float32_may_be_off_by_a_thousandth_anywhere_and_no_more() -> None:
    probes, error = make(), torch.zeros(COUNT, 8, 32)
    error[3, 4, 5] = 0.9e-3
    assert compare_with_probes(probes, observed(probes, adapter=error), is_exact=True).proven
    with pytest.raises(AdapterInvalid, match=r"error of the adapter 0\.0018") as caught:
        compare_with_probes(probes, observed(probes, adapter=2 * error), is_exact=True)
    assert caught.value.code == "SELF_TEST_FAILED"
    assert caught.value.item == "error of the adapter"


def test_a_wrong_base_is_told_before_all_else() -> None:
    probes = make()
    wrong = observed(probes, base=noise(0.3), adapter=noise(0.3), greedy=[[0] * 16] * COUNT)
    for is_exact in (True, False):
        with pytest.raises(AdapterIncompatible, match="the base alone") as caught:
            compare_with_probes(probes, wrong, is_exact=is_exact)
        assert caught.value.item == "error of the base"


def test_rounding_passes_in_other_dtypes_and_a_missing_part_of_the_effect_does_not() -> None:
    probes = make()
    rounded = observed(probes, base=noise(0.04), adapter=noise(0.05))
    with pytest.raises(AdapterIncompatible):
        compare_with_probes(probes, rounded, is_exact=True)
    assert compare_with_probes(probes, rounded, is_exact=False).proven
    effect = probes.top_logprobs - probes.base_top_logprobs
    for part in (0.25, 0.5, 0.75, -0.5):  # of the effect that is missing
        wrong = observed(probes, base=noise(0.04), adapter=noise(0.05) - part * effect)
        with pytest.raises(AdapterInvalid, match="other numbers than in its training"):
            compare_with_probes(probes, wrong, is_exact=False)


def test_no_effect_is_refused_unless_it_is_wanted() -> None:
    probes = make(effect=1e-5)
    with pytest.raises(AdapterInvalid) as caught:
        compare_with_probes(probes, observed(probes), is_exact=True)
    assert caught.value.code == "NO_EFFECT"
    proof = compare_with_probes(probes, observed(probes), is_exact=True, allow_no_effect=True)
    assert proof.proven


@pytest.mark.parametrize("is_exact", [True, False])
def test_greedy_tokens_count_until_the_choice_was_too_close(is_exact: bool) -> None:
    probes = make()
    errors = {} if is_exact else {"base": noise(0.04), "adapter": noise(0.05)}
    greedy = probes.greedy_ids.tolist()
    greedy[2][5:] = [(token + 1) % VOCAB for token in greedy[2][5:]]
    with pytest.raises(AdapterInvalid, match="greedy tokens equal 117 of 118"):
        compare_with_probes(probes, observed(probes, greedy=greedy, **errors), is_exact=is_exact)
    probes.greedy_margin[2, 5] = 1e-4
    proof = compare_with_probes(
        probes, observed(probes, greedy=greedy, **errors), is_exact=is_exact
    )
    assert proof.checks[-1].measured == "117 of 117"


def test_an_answer_that_ended_early_is_not_equal() -> None:
    probes = make()
    greedy = probes.greedy_ids.tolist()
    greedy[0] = greedy[0][:3]
    with pytest.raises(AdapterInvalid, match="greedy"):
        compare_with_probes(probes, observed(probes, greedy=greedy), is_exact=True)


def test_a_refusal_tells_every_number() -> None:
    probes = make()
    with pytest.raises(AdapterInvalid) as caught:
        compare_with_probes(probes, observed(probes, adapter=0.5), is_exact=True)
    assert set(caught.value.metadata) == {
        "error of the base",
        "effect",
        "error of the adapter",
        "greedy tokens equal",
    }
