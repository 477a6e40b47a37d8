"""The engine with 8-bit weights: rows stay apart, and what is wrong does not start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import Answer, Harness, random_prompts

from polygraft.adapters.errors import ModelRefused
from polygraft.kernels.native import int8

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")


def answers(base: TinyBase, prompts: list[list[int]], dtype: str) -> list[Answer]:
    harness: Harness = base.harness(weight_format="int8", dtype=dtype)
    for i, prompt in enumerate(prompts):
        kind = KINDS[i % len(KINDS)]
        harness.submit(str(i), prompt, adapter=kind, max_output_tokens=12)
    harness.run()
    harness.assert_clean()
    return [harness.answers[str(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_change_no_bit(tiny_base: TinyBase, dtype: str) -> None:
    prompts = random_prompts(32, vocab=VOCAB, seed=8)
    together = answers(tiny_base, prompts, dtype)
    for count in (1, 5):
        for few, many in zip(answers(tiny_base, prompts[:count], dtype), together, strict=False):
            assert few.token_ids == many.token_ids
            assert torch.equal(torch.stack(few.logits), torch.stack(many.logits))


def test_a_wrong_scale_is_refused_before_anything_is_served(
    tiny_base: TinyBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = int8.quantize_rows

    def wrong(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized, scale = exact(weight)
        return quantized, scale * 1.5

    monkeypatch.setattr(int8, "quantize_rows", wrong)
    with pytest.raises(ModelRefused, match="8-bit weights"):
        tiny_base.harness(weight_format="int8")


def test_it_is_refused_by_name_without_the_native_kernels(tiny_base: TinyBase) -> None:
    with pytest.raises(ModelRefused, match="need the native kernels") as refused:
        tiny_base.harness(weight_format="int8", native_kernels=False)
    assert refused.value.found == "int8"
