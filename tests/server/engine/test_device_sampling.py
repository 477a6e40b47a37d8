"""Tokens chosen on a device are those that the host would choose, whatever stands beside them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from engine_support.architectures import VOCAB
from torch import Tensor

from polygraft.server.engine.batch import Chunk, SampleRows
from polygraft.server.engine.device.sampling import SamplingTable, choose
from polygraft.server.engine.messages import EngineRequest, Sampling, Stopping
from polygraft.server.engine.sequence import Sequence

CPU = torch.device("cpu")


def sequence_of(seed: int, sampling: Sampling, **stopping: int) -> Sequence:
    """Some prompt, and some output already."""
    choose_ids = random.Random(seed)
    prompt = tuple(choose_ids.randrange(VOCAB) for _ in range(9))
    stop = frozenset(choose_ids.sample(range(VOCAB), 3)) | {VOCAB + 7}
    request = EngineRequest(str(seed), prompt, Stopping(50, stop, **stopping), sampling)
    sequence = Sequence(request, block_size=16)
    for _ in range(choose_ids.randrange(12)):
        sequence.append(choose_ids.choice([*prompt, *range(20)]))
    return sequence


def random_sampling(seed: int) -> Sampling:
    pick = random.Random(seed)
    bias = tuple((token, pick.uniform(-4, 4)) for token in pick.sample(range(VOCAB), 3))
    return Sampling(
        temperature=pick.choice((0.0, 0.3, 1.0, 1.7)),
        top_p=pick.choice((1.0, 0.9, 0.4, 1e-6)),
        top_k=pick.choice((0, 0, 1, 7, 10 * VOCAB)),
        seed=seed,
        min_p=pick.choice((0.0, 0.0, 0.05)),
        repetition_penalty=pick.choice((1.0, 1.3)),
        presence_penalty=pick.choice((0.0, 0.5)),
        frequency_penalty=pick.choice((0.0, -0.2)),
        logit_bias=pick.choice(((), bias)),
    )


def random_logits(count: int, seed: int) -> Tensor:
    """With many equal ones, as bfloat16 has them."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, VOCAB, generator=generator)).bfloat16().float()


def on_device(sequences: list[Sequence], logits: Tensor) -> list[int]:
    groups = [SampleRows(Chunk(s, 1), i, 1, 0) for i, s in enumerate(sequences)]
    table = SamplingTable.of(groups, VOCAB, CPU)
    assert not table.host
    before = logits.clone()
    tokens = choose(logits, logits.argmax(-1), table).tolist()
    assert torch.equal(logits, before)
    return list(map(int, tokens))


@pytest.mark.parametrize("seed", range(12))
def test_they_are_the_host_s(seed: int) -> None:
    sequences = [
        sequence_of(16 * seed + i, random_sampling(16 * seed + i), min_output_tokens=6)
        for i in range(16)
    ]
    logits = random_logits(16, seed)
    expected = [s.chooser.choose(row.numpy()) for s, row in zip(sequences, logits, strict=True)]
    assert on_device(sequences, logits) == expected


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    sequences = [sequence_of(i, random_sampling(i)) for i in range(24)]
    logits = random_logits(24, 1)
    together = on_device(sequences, logits)
    alone = [on_device([s], row[None])[0] for s, row in zip(sequences, logits, strict=True)]
    assert together == alone


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[:, [5, 9, 77]] = 2.0
    sequences = [sequence_of(0, Sampling()), sequence_of(1, Sampling(logit_bias=((5, -1.0),)))]
    assert on_device(sequences, logits) == [5, 9]


def test_draws_are_spread_like_the_weights() -> None:
    sampling = Sampling(temperature=0.8, top_p=0.95)
    logits = random_logits(1, 3).expand(4000, -1)
    sequences = [sequence_of(0, replace(sampling, seed=seed)) for seed in range(4000)]
    counts = torch.bincount(torch.tensor(on_device(sequences, logits)), minlength=VOCAB)
    weights = (logits[0] / 0.8).softmax(-1)
    top = weights.argsort(descending=True)[:5]
    error = (counts[top] / 4000 - weights[top] / 0.95).abs().max()
    assert error < 0.03


@pytest.mark.parametrize(
    ("request_fields", "why"),
    [({"top_logprobs": 2}, "host_logprobs"), ({"wanted_logprobs": ((1,),)}, "host_logprobs")],
)
def test_what_the_host_must_choose_is_named(request_fields: dict[str, object], why: str) -> None:
    plain = sequence_of(0, Sampling())
    request = replace(plain.request, request_id="other", **request_fields)  # type: ignore[arg-type]
    other = Sequence(request, block_size=16)
    groups = [SampleRows(Chunk(s, 1), i, 1, 0) for i, s in enumerate((plain, other))]
    table = SamplingTable.of(groups, VOCAB, CPU)
    assert table.host == {1}
    assert table.why == {"device": 1, why: 1}


def test_penalties_of_guessed_tokens_are_the_host_s() -> None:
    penalised = sequence_of(0, Sampling(presence_penalty=0.5))
    table = SamplingTable.of([SampleRows(Chunk(penalised, 3, (1, 2)), 0, 3, 0)], VOCAB, CPU)
    assert table.why == {"host_draft": 3}
    plain = sequence_of(0, Sampling(temperature=1.0))
    table = SamplingTable.of([SampleRows(Chunk(plain, 3, (1, 2)), 0, 3, 0)], VOCAB, CPU)
    assert table.why == {"device": 3}
