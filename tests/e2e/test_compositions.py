"""Several adapters by weight over gRPC: the tokens and log-probabilities of PEFT, in any form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts
from engine_support.peft_adapters import Generated, generate_composed

from polygraft.client import Generation, ScoreItem

if TYPE_CHECKING:
    from conftest import Served

NUM_TOKENS = 8
PROMPT = random_prompts(1, vocab=VOCAB, seed=11)[0]
COMPOSITIONS: tuple[Mapping[str, float], ...] = (
    {"lora4": 0.7, "patterns16": 1.5},
    {"rslora8": -0.8, "lora4": 1.0},
    {"patterns16": -0.5, "soft": 1.0, "rslora8": 0.9},
)


def peft(served: Served, weights: Mapping[str, float]) -> Generated:
    saved = served.saved
    loras = {saved.adapters[name]: weight for name, weight in weights.items() if name != "soft"}
    soft = saved.adapters["soft"] if "soft" in weights else None
    return generate_composed(saved.base, loras, PROMPT, NUM_TOKENS, soft_prompt=soft)


async def generate(served: Served, weights: Mapping[str, float]) -> Generation:
    return await served.client.generate(
        token_ids=PROMPT,
        adapters=weights,
        max_output_tokens=NUM_TOKENS,
        ignore_eos=True,
        top_logprobs=0,
        return_token_ids=True,
    )


@pytest.mark.parametrize("weights", COMPOSITIONS, ids=str)
async def test_a_composition_is_that_of_peft(served: Served, weights: Mapping[str, float]) -> None:
    for name in weights:
        await served.push(name, served.saved.adapters[name])
    answer = await generate(served, weights)
    tokens, logits = peft(served, weights)
    assert list(answer.token_ids) == tokens
    expected = logits.double().log_softmax(-1)
    assert [entry.logprob for entry in answer.logprobs] == pytest.approx(
        [float(row[token]) for row, token in zip(expected, tokens, strict=True)], abs=1e-3
    )
    assert {v.adapter_name: pytest.approx(v.weight) for v in answer.versions} == dict(weights)

    other_order = await generate(served, dict(reversed(weights.items())))
    assert other_order.token_ids == answer.token_ids
    items = ScoreItem.each([tokens, tokens[:3]], token_ids=PROMPT)
    whole, part = await served.client.score(items, adapters=weights)
    assert [token.logprob for token in whole.tokens] == pytest.approx(
        [entry.logprob for entry in answer.logprobs], abs=1e-3
    )
    assert [t.token_id for t in part.tokens] == tokens[:3]
    assert whole.is_greedy
    assert whole.versions == answer.versions


async def test_weights_of_one_and_nought_are_one_adapter(served: Served) -> None:
    for name in ("lora4", "rslora8"):
        await served.push(name, served.saved.adapters[name])
    alone = await served.client.generate(
        token_ids=PROMPT,
        adapter="lora4",
        max_output_tokens=NUM_TOKENS,
        ignore_eos=True,
        top_logprobs=0,
        return_token_ids=True,
    )
    composed = await generate(served, {"lora4": 1.0, "rslora8": 0.0})
    assert composed.choices == alone.choices
    assert composed.versions == alone.versions
