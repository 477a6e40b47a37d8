"""Every option changes what it should, over real gRPC on the bundled base.

The oracle is transformers: its logits of the same tokens, its `generate`, its logits processors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from polygraft.adapters.fingerprint import resolve_base
from polygraft.client import Client, ScoreItem

PROMPT = "Anna: Are you at home? Ben: No, at work."
CLOSE = 2e-4  # float32 on both sides, other orders of adding up


@dataclass(frozen=True)
class Oracle:
    """The same base in transformers."""

    model: LlamaForCausalLM
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def logits(self, token_ids: list[int]) -> Tensor:
        """[tokens, vocabulary]: row i is of the token after the first i + 1."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0].double()

    def logprobs(self, token_ids: list[int]) -> Tensor:
        return self.logits(token_ids).log_softmax(-1)

    def greedy(self, prompt: str, count: int, **options: Any) -> list[int]:
        """What `generate` makes, the end-of-sequence token included."""
        ids = torch.tensor([self.ids(prompt)])
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
            **options,
        )
        return made[0, ids.shape[1] :].tolist()

    @cached_property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    path = resolve_base("builtin:nano")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Oracle(model, AutoTokenizer.from_pretrained(path))


def made_by(nano: Client, prompt: str = PROMPT, **options: Any) -> list[int]:
    """Greedy tokens, 24 unless told otherwise."""
    options = {"max_output_tokens": 24, "return_token_ids": True, **options}
    return list(nano.generate(prompt, **options).token_ids)


def test_plain_greedy_is_that_of_transformers(nano: Client, oracle: Oracle) -> None:
    assert made_by(nano) == oracle.greedy(PROMPT, 24)


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty(nano: Client, oracle: Oracle, penalty: float) -> None:
    expected = oracle.greedy(PROMPT, 24, repetition_penalty=penalty)
    assert made_by(nano, repetition_penalty=penalty) == expected
    assert expected != oracle.greedy(PROMPT, 24)


def test_least_output(nano: Client, oracle: Oracle) -> None:
    plain = oracle.greedy(PROMPT, 200)
    assert plain[-1] == oracle.eos, "the base ends this by itself"
    least = len(plain) + 5
    expected = oracle.greedy(PROMPT, 200, min_new_tokens=least)
    answer = nano.generate(
        PROMPT, max_output_tokens=200, min_output_tokens=least, return_token_ids=True
    )
    assert list(answer.token_ids) == expected
    assert answer.usage.output_tokens >= least
    short = nano.generate(PROMPT, max_output_tokens=200)
    assert short.usage.output_tokens == len(plain)


def test_logit_bias(nano: Client, oracle: Oracle) -> None:
    plain = oracle.greedy(PROMPT, 24)
    bias = {plain[0]: -100.0, 300: 2.5, 7: 1.0}
    sequence_bias = [[[token], value] for token, value in bias.items()]
    expected = oracle.greedy(PROMPT, 24, sequence_bias=sequence_bias)
    assert made_by(nano, logit_bias=bias) == expected
    assert plain[0] not in expected


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 1.5), (-1.0, 0.5)])
def test_presence_and_frequency_penalty(
    nano: Client, oracle: Oracle, presence: float, frequency: float
) -> None:
    """Checked step by step: each token is the best one after what the penalties take."""
    made = made_by(
        nano, presence_penalty=presence, frequency_penalty=frequency, max_output_tokens=40
    )
    prompt = oracle.ids(PROMPT)
    logits = oracle.logits(prompt + made)[len(prompt) - 1 : -1]
    counts: Counter[int] = Counter()
    for row, token in zip(logits, made, strict=True):
        row = row.clone()
        for seen, count in counts.items():
            row[seen] -= presence + frequency * count
        assert row[token] > row.max() - 1e-3
        counts[token] += 1
    assert made != made_by(nano, max_output_tokens=40)


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs_of_output_and_prompt(nano: Client, oracle: Oracle, top: int) -> None:
    answer = nano.generate(
        PROMPT,
        max_output_tokens=12,
        ignore_eos=True,
        top_logprobs=top,
        prompt_logprobs=top,
        return_token_ids=True,
        temperature=1.0,  # they are the model's own, whatever is drawn
        seed=5,
    )
    ids = oracle.ids(PROMPT) + list(answer.token_ids)
    entries = answer.prompt_logprobs + answer.logprobs
    assert [entry.token_id for entry in entries] == ids[1:]
    for entry, row in zip(entries, oracle.logprobs(ids)[:-1], strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=CLOSE)
        rank = int((row > row[entry.token_id]).sum()) + 1
        assert entry.rank == rank
        best = row.topk(top)
        assert [token.token_id for token in entry.top] == best.indices.tolist()
        assert [token.logprob for token in entry.top] == pytest.approx(
            best.values.tolist(), abs=CLOSE
        )


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"top_k": 3}, lambda p: p >= p.topk(3).values[-1]),
        ({"min_p": 0.2}, lambda p: p >= 0.2 * p.max()),
        ({"top_p": 0.6}, lambda p: p >= p.sort(descending=True).values[_nucleus(p, 0.6)]),
    ],
    ids=["top_k", "min_p", "top_p"],
)
def test_only_kept_tokens_are_drawn(
    nano: Client, oracle: Oracle, options: dict[str, Any], keeps: Any
) -> None:
    prompt, temperature = oracle.ids(PROMPT), 1.5
    answer = nano.generate(
        PROMPT,
        n=8,
        seed=1,
        temperature=temperature,
        max_output_tokens=20,
        ignore_eos=True,
        return_token_ids=True,
        **options,
    )
    assert len({choice.token_ids for choice in answer.choices}) > 1
    dropped = 0
    for choice in answer.choices:
        logits = oracle.logits(prompt + list(choice.token_ids))[len(prompt) - 1 : -1]
        for row, token in zip(logits / temperature, choice.token_ids, strict=True):
            probabilities = row.softmax(-1)
            kept = keeps(probabilities * (1 + 1e-4))
            assert kept[token]
            dropped += int((~kept).sum())
    assert dropped > 1000


def _nucleus(probabilities: Tensor, top_p: float) -> int:
    """Index, in falling order, of the token that makes the sum reach `top_p`."""
    return int((probabilities.sort(descending=True).values.cumsum(0) < top_p).sum())


def test_choices_are_what_their_seeds_give_alone(nano: Client) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "max_output_tokens": 16, "ignore_eos": True}
    together = nano.generate(PROMPT, n=5, seed=40, **options)
    alone = [nano.generate(PROMPT, seed=40 + index, **options).text for index in range(5)]
    assert [choice.text for choice in together.choices] == alone
    assert len(set(alone)) > 1
    streamed = nano.stream(PROMPT, n=5, seed=40, **options)
    pieces = list(streamed)
    for index in range(5):
        assert "".join(p.text for p in pieces if p.index == index) == alone[index]


def test_choices_compute_the_prompt_once(nano: Client, oracle: Oracle) -> None:
    prompt = PROMPT * 8
    answer = nano.generate(prompt, n=4, temperature=1.0, max_output_tokens=2, ignore_eos=True)
    assert answer.usage.prompt_tokens == len(oracle.ids(prompt))
    assert answer.usage.output_tokens == 8


def test_echo_puts_the_prompt_in_front(nano: Client) -> None:
    plain = nano.generate(PROMPT, max_output_tokens=24)
    assert nano.generate(PROMPT, max_output_tokens=24, echo=True).text == PROMPT + plain.text
    pieces = list(nano.stream(PROMPT, max_output_tokens=24, echo=True))
    assert "".join(piece.text for piece in pieces) == PROMPT + plain.text


def test_stop_sequences_end_each_choice_by_itself(nano: Client) -> None:
    options: dict[str, Any] = {"n": 6, "seed": 3, "temperature": 1.3, "max_output_tokens": 40}
    free = nano.generate(PROMPT, ignore_eos=True, **options)
    stopped = nano.generate(PROMPT, ignore_eos=True, stop=["e", "an"], **options)
    cut = 0
    for whole, short in zip(free.choices, stopped.choices, strict=True):
        ends = [at for stop in ("e", "an") if (at := whole.text.find(stop)) >= 0]
        assert short.text == (whole.text[: min(ends)] if ends else whole.text)
        assert short.finish_reason == ("stop" if ends else "length")
        cut += bool(ends)
    assert cut > 0


def test_scores_of_many_continuations_share_their_context(nano: Client, oracle: Oracle) -> None:
    context = PROMPT * 4
    items = ScoreItem.each([" Where", " Who", " What is it?"], prompt=context)
    scores = nano.score(items)
    for item, score in zip(items, scores, strict=True):
        ids = oracle.ids(context + str(item.continuation))
        tokens = [token.token_id for token in score.tokens]
        assert ids[-len(tokens) :] == tokens
        logprobs = oracle.logprobs(ids)[-len(tokens) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert [t.logprob for t in score.tokens] == pytest.approx(expected.tolist(), abs=CLOSE)
        assert score.logprob == pytest.approx(float(expected.sum()), abs=CLOSE * len(tokens))
        greedy = [int(row.argmax()) == token for row, token in zip(logprobs, tokens, strict=True)]
        assert [token.rank == 1 for token in score.tokens] == greedy
        assert score.is_greedy == all(greedy)
    assert all(score.usage.cached_tokens > len(oracle.ids(context)) // 2 for score in scores[1:])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_speculation_changes_no_token(nano: Client, temperature: float) -> None:
    prompt = "copy: Tom has a red kite and a red cap. " * 4
    options: dict[str, Any] = {
        "n": 3,
        "seed": 9,
        "temperature": temperature,
        "max_output_tokens": 60,
        "ignore_eos": True,
        "top_logprobs": 1,
        "return_token_ids": True,
        "stop": "kite and a",
    }
    plain = nano.generate(prompt, speculation=False, **options)
    guessed = nano.generate(prompt, speculation=True, **options)
    assert [choice.token_ids for choice in guessed.choices] == [c.token_ids for c in plain.choices]
    assert [choice.text for choice in guessed.choices] == [c.text for c in plain.choices]
    for one, other in zip(guessed.choices, plain.choices, strict=True):
        logprobs = [entry.logprob for entry in other.logprobs]
        assert [entry.logprob for entry in one.logprobs] == pytest.approx(logprobs, abs=CLOSE)
