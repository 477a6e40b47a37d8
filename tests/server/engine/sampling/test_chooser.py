"""Everything that changes logits, against the processors that transformers' `generate` builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_llama
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.engine.messages import EngineRequest, Sampling, Stopping
from polygraft.server.engine.sampling.chooser import TokenChooser
from polygraft.server.engine.sampling.draw import kept

VOCAB = 264
MODEL = tiny_llama()
EDGE = 1e-5  # tokens at the edge of top-p or min-p may fall on either side for rounding


@dataclass
class AllowedTokens:
    """A constraint that allows the same tokens always; `end` tokens complete it."""

    tokens: Sequence[int]
    end: Sequence[int] = ()
    taken: list[int] = field(default_factory=list)

    def start(self) -> AllowedTokens:
        return AllowedTokens(self.tokens, self.end)

    @property
    def is_accepting(self) -> bool:
        return self.is_finished or len(self.taken) >= 2

    @property
    def is_finished(self) -> bool:
        return bool(self.taken) and self.taken[-1] in self.end

    def allowed(self) -> np.ndarray:
        mask = np.zeros(VOCAB, dtype=np.bool_)
        mask[list(self.tokens)] = True
        return mask

    def advance(self, token_id: int) -> None:
        self.taken.append(token_id)

    def forced(self) -> Sequence[int]:
        return ()

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)


def logits_of(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * 4).astype(np.float32)


def transformers_probabilities(
    request: EngineRequest,
    output: list[int],
    logits: np.ndarray,
    allowed: Sequence[int] | None,
    margin: float,
) -> np.ndarray:
    """[vocab_size] what transformers' `generate` would draw from; a positive margin keeps more."""
    sampling, stopping = request.sampling, request.stopping
    config = GenerationConfig(
        do_sample=True,
        num_beams=1,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p + margin if sampling.top_p < 1 else 1.0,
        min_p=sampling.min_p * (1 - margin) or None,
        repetition_penalty=sampling.repetition_penalty,
        sequence_bias={(token,): bias for token, bias in sampling.logit_bias} or None,
        min_new_tokens=stopping.min_output_tokens or None,
        eos_token_id=sorted(stopping.stop_token_ids),
    )
    MODEL._prepare_special_tokens(config, device=torch.device("cpu"))
    processors: LogitsProcessorList = MODEL._get_logits_processor(
        config,
        input_ids_seq_length=len(request.prompt_token_ids),
        prefix_allowed_tokens_fn=None if allowed is None else lambda *_: list(allowed),
        device="cpu",
    )
    ids = torch.tensor([[*request.prompt_token_ids, *output]])
    scores = processors(ids, torch.from_numpy(logits.copy())[None])[0]
    return scores.double().softmax(-1).numpy()


STOPS = frozenset({3, 5})
tokens = st.integers(0, VOCAB - 1)
texts = st.lists(tokens.filter(lambda token: token not in STOPS), max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_p=st.sampled_from([1.0, 0.9]),
        top_k=st.sampled_from([0, 40]),
        min_p=st.sampled_from([0.0, 0.03]),
        repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
        logit_bias=st.dictionaries(tokens, st.floats(-20, 20, width=32), max_size=8).map(
            lambda bias: tuple(bias.items())
        ),
    ),
    prompt=st.lists(tokens, min_size=1, max_size=40),
    output=texts,
    min_output=st.sampled_from([0, 20]),
    allowed=st.none() | st.lists(st.integers(6, VOCAB - 1), min_size=5, max_size=60, unique=True),
    seed=st.integers(0, 1 << 30),
)
def test_a_draw_is_from_the_distribution_of_transformers_generate(
    sampling: Sampling,
    prompt: list[int],
    output: list[int],
    min_output: int,
    allowed: list[int] | None,
    seed: int,
) -> None:
    request = EngineRequest(
        "r",
        tuple(prompt),
        Stopping(100, STOPS, min_output_tokens=min_output),
        sampling,
        constraint=None if allowed is None else AllowedTokens(allowed),
    )
    chooser = TokenChooser(request)
    for token in output:
        chooser.take(token)
    logits = logits_of(seed)
    before = logits.copy()
    ids, weights = kept(chooser.process(logits), sampling)
    ours = np.zeros(VOCAB)
    ours[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    if allowed is not None and len(output) >= 2:  # AllowedTokens accepts: stop ids are allowed
        allowed = [*allowed, *STOPS]
    assert any(
        np.allclose(
            ours, transformers_probabilities(request, output, logits, allowed, m), atol=2e-6
        )
        for m in (0.0, -EDGE, EDGE)
    )
    assert np.array_equal(logits, before), "log-probabilities are taken from it later"


@settings(deadline=None)
@given(
    penalty=st.floats(0.1, 3),
    prompt=st.lists(tokens, min_size=1, max_size=40),
    output=texts,
    seed=st.integers(0, 1 << 30),
)
def test_repetition_penalty_gives_the_very_values_of_transformers(
    penalty: float, prompt: list[int], output: list[int], seed: int
) -> None:
    chooser = chooser_after(output, Sampling(repetition_penalty=penalty), prompt)
    logits = logits_of(seed)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[*prompt, *output]]), torch.from_numpy(logits.copy())[None])
    assert np.array_equal(chooser.process(logits), expected[0].numpy())


@settings(deadline=None)
@given(
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    prompt=st.lists(tokens, min_size=1, max_size=40),
    output=texts,
)
def test_presence_and_frequency_penalties_count_output_tokens_only(
    presence: float, frequency: float, prompt: list[int], output: list[int]
) -> None:
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    logits = logits_of(0)
    counts = np.bincount(output, minlength=VOCAB)
    expected = logits.astype(np.float64) - presence * (counts > 0) - frequency * counts
    ours = chooser_after(output, sampling, prompt).process(logits)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def chooser_after(
    output: Sequence[int], sampling: Sampling, prompt: Sequence[int] = (1, 2)
) -> TokenChooser:
    chooser = TokenChooser(EngineRequest("r", tuple(prompt), Stopping(100), sampling))
    for token in output:
        chooser.take(token)
    return chooser


def test_without_anything_set_the_logits_are_not_even_copied() -> None:
    logits = logits_of(1)
    assert chooser_after([4, 5], Sampling(0.7, top_p=0.9)).process(logits) is logits


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[90, 17, 44]] = 3.0
    assert chooser_after([], Sampling()).choose(logits) == 17


def test_greedy_heeds_penalties_and_bias() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[17, 44, 90]] = 3.0, 2.9, 2.8
    assert chooser_after([17], Sampling(repetition_penalty=1.5)).choose(logits) == 44
    assert chooser_after([17, 44], Sampling(presence_penalty=0.5)).choose(logits) == 90
    assert chooser_after([17, 17], Sampling(frequency_penalty=0.06)).choose(logits) == 44
    assert chooser_after([], Sampling(logit_bias=((200, 3.5),))).choose(logits) == 200


def constrained(constraint: AllowedTokens, min_output: int = 0) -> TokenChooser:
    stopping = Stopping(100, STOPS, min_output_tokens=min_output)
    return TokenChooser(EngineRequest("r", (1,), stopping, constraint=constraint))


def test_a_stop_id_may_come_only_where_the_constraint_accepts() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[5] = 9.0
    chooser = constrained(AllowedTokens([60, 61]))
    chosen = []
    for _ in range(3):
        chosen.append(chooser.choose(logits))
        chooser.take(chosen[-1])
    assert chosen == [60, 60, 5]


def test_least_output_outweighs_a_constraint_that_would_accept() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[5] = 9.0
    chooser = constrained(AllowedTokens([60]), min_output=4)
    for _ in range(4):
        assert chooser.choose(logits) == 60
        chooser.take(60)
    assert chooser.choose(logits) == 5


def test_a_complete_constraint_finishes() -> None:
    chooser = constrained(AllowedTokens([60, 61], end=[61]), min_output=9)
    assert not chooser.is_finished
    chooser.take(61)
    assert chooser.is_finished


def test_a_constraint_without_a_way_on_is_refused_by_name() -> None:
    chooser = constrained(AllowedTokens([]))
    with pytest.raises(InvalidRequest, match="no token can follow the first 0") as refused:
        chooser.choose(logits_of(0))
    assert refused.value.code == "INVALID_CONSTRAINT"
