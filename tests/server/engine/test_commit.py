"""What a step makes of logits, through the engine: penalties, least output, log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import Harness, random_prompts
from peft import PeftModel
from transformers import AutoModelForCausalLM

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.messages import FinishReason, Sampling, TokenLogprob

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")
PENALISED = Sampling(
    1.2,
    0.95,
    40,
    seed=11,
    min_p=0.001,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.2,
    logit_bias=((5, 2.0), (9, -4.0)),
)


@pytest.mark.parametrize("sampling", [Sampling(), PENALISED], ids=["greedy", "penalised"])
def test_tokens_depend_on_neither_the_batch_nor_preemption(
    tiny_base: TinyBase, sampling: Sampling
) -> None:
    prompts = random_prompts(12, vocab=VOCAB, seed=4)
    answers = []
    # 6 KiB a block: the second has room for 16 blocks only.
    for settings in ({}, {"kv_bytes": 16 * 6144}, {"max_running": 1}, {"max_chunk": 3}):
        harness = tiny_base.harness(**settings)
        for i, prompt in enumerate(prompts):
            kind = KINDS[i % len(KINDS)]
            harness.submit(str(i), prompt, adapter=kind, max_output_tokens=40, sampling=sampling)
        harness.run()
        harness.assert_clean()
        assert (harness.engine.stats().preemptions > 0) == ("kv_bytes" in settings)
        answers.append([harness.answers[str(i)].token_ids for i in range(len(prompts))])
    assert answers[1:] == answers[:1] * 3


def test_greedy_with_penalty_bias_and_least_output_equals_transformers(
    tiny_base: TinyBase,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base.base)
    model.train(False)
    plain = tiny_base.harness()
    harness = tiny_base.harness()
    bias = {5: 1.0, 77: -3.0}
    for i, prompt in enumerate(random_prompts(8, vocab=VOCAB, seed=2)):
        plain.submit(str(i), prompt, max_output_tokens=24)
        plain.run()
        stop = frozenset(plain.answers[str(i)].token_ids[1:3])  # would end it very soon
        ids = torch.tensor([prompt])
        expected = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            min_new_tokens=10,
            repetition_penalty=1.2,
            sequence_bias={(token,): value for token, value in bias.items()},
            eos_token_id=sorted(stop),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        harness.submit(
            str(i),
            prompt,
            max_output_tokens=24,
            min_output_tokens=10,
            stop=stop,
            sampling=Sampling(repetition_penalty=1.2, logit_bias=tuple(bias.items())),
        )
        harness.run()
        assert harness.answers[str(i)].token_ids == expected
        assert len(expected) >= 10
        assert expected != plain.answers[str(i)].token_ids


def expected_logprobs(
    tiny_base: TinyBase, adapter: str | None, ids: list[int], num_top: int
) -> list[TokenLogprob]:
    """Of every token but the first, by transformers and peft in float32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base.base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, tiny_base.adapters[adapter])
    model.train(False)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].double()
    logprobs = logits[-len(ids) :].log_softmax(-1)  # peft answers for virtual tokens too
    entries = []
    for row, target in zip(logprobs, ids[1:], strict=False):
        order = row.argsort(descending=True).tolist()
        top = tuple((token, float(row[token])) for token in order[:num_top])
        entries.append(TokenLogprob(target, float(row[target]), order.index(target) + 1, top))
    return entries


def assert_same(found: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert [e.token_id for e in found] == [e.token_id for e in expected]
    assert [e.rank for e in found] == [e.rank for e in expected]
    assert [e.logprob for e in found] == pytest.approx([e.logprob for e in expected], abs=1e-4)
    for one, other in zip(found, expected, strict=True):
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)


@pytest.mark.parametrize("kind", [None, "patterns16", "soft"])
@pytest.mark.parametrize("settings", [{}, {"max_chunk": 7}, {"max_chunk": 1}], ids=str)
def test_logprobs_of_prompt_and_output_equal_peft(
    tiny_base: TinyBase, kind: str | None, settings: dict[str, int]
) -> None:
    harness = tiny_base.harness(**settings)
    prompt = random_prompts(1, vocab=VOCAB, seed=21)[0]
    sampling = Sampling(0.9, seed=3, repetition_penalty=1.4)  # must not show in what is reported
    for name in ("first", "again"):  # the second time much is in the prefix cache
        harness.submit(
            name,
            prompt,
            adapter=kind,
            max_output_tokens=10,
            sampling=sampling,
            top_logprobs=3,
            prompt_logprobs=5,
        )
        harness.submit(f"{name} beside", prompt, adapter="lora4", max_output_tokens=10)
        harness.run()
        answer = harness.answers[name]
        ids = prompt + answer.token_ids
        assert_same(answer.prompt_logprobs, expected_logprobs(tiny_base, kind, prompt, 5))
        assert_same(answer.logprobs, expected_logprobs(tiny_base, kind, ids, 3)[len(prompt) - 1 :])
    harness.assert_clean()


def test_a_token_alone_can_be_asked_for_without_others(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [4, 5, 6], max_output_tokens=3, top_logprobs=0, prompt_logprobs=0)
    harness.submit("single", [4], max_output_tokens=1, prompt_logprobs=2)
    harness.run()
    entries = harness.answers["r"].logprobs + harness.answers["r"].prompt_logprobs
    assert len(entries) == 5
    assert all(entry.top == () for entry in entries)
    assert harness.answers["single"].prompt_logprobs == []
    assert harness.answers["single"].logprobs == []


def test_prompt_logprobs_survive_preemption(tiny_base: TinyBase) -> None:
    prompts = random_prompts(12, vocab=VOCAB, seed=4)
    answers = []
    for settings in ({}, {"kv_bytes": 16 * 6144, "max_chunk": 5}):
        harness = tiny_base.harness(**settings)
        for i, prompt in enumerate(prompts):
            harness.submit(str(i), prompt, max_output_tokens=40, prompt_logprobs=1)
        harness.run()
        answers.append([harness.answers[str(i)] for i in range(len(prompts))])
    assert harness.engine.stats().preemptions > 0
    for roomy, tight in zip(*answers, strict=True):
        assert_same(tight.prompt_logprobs, roomy.prompt_logprobs)


def test_a_bias_for_a_token_outside_the_vocabulary_is_refused(tiny_base: TinyBase) -> None:
    harness: Harness = tiny_base.harness()
    with pytest.raises(InvalidRequest) as refused:
        harness.submit("r", [1], sampling=Sampling(logit_bias=((3, 1.0), (VOCAB, 1.0))))
    assert (refused.value.code, refused.value.item) == ("INVALID_TOKEN", "logit_bias")


def test_stop_ids_wait_for_the_least_output(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [9, 8, 7], stop=frozenset(range(VOCAB - 1)), min_output_tokens=5)
    harness.run()
    answer = harness.answers["r"]
    assert answer.token_ids[:5] == [VOCAB - 1] * 5
    assert len(answer.token_ids) == 6
    assert answer.finish_reason is FinishReason.STOP
