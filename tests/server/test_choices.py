"""Several answers to one request, echo, log-probabilities: from the engine's outputs to the client.

The engine is a fake that says what the test wants; choice i has the request id `<id>.<i>`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_support.fake_engine import FakeEngine
from server_support.service import DSUM_RECIPE, Service, running_service, until_idle
from tiny_models import BOS, EOS

from polygraft.client import DeadlineExpired, Generation, InvalidRequest, Overloaded, Piece
from polygraft.server.engine.messages import EngineRequest

REPLIES = ["Hello, wörld! 😀", "Zażółć gęślą jaźń", "日本語。STOP never shown", ""]


def index_of(request: EngineRequest) -> int:
    return int(request.request_id.rpartition(".")[2])


def say_different_things(service: Service) -> None:
    """Choice i says REPLIES[i]."""
    encode = service.engine.tokenizer.encode

    def tokens(request: EngineRequest) -> Iterator[int]:
        reply = REPLIES[index_of(request) % len(REPLIES)]
        return itertools.chain(encode(reply, add_special_tokens=False), itertools.repeat(EOS))

    service.engine.token_ids = tokens


async def collect(service: Service, **options: Any) -> tuple[list[Piece], Generation]:
    stream = service.client.stream("Hi", **options)
    pieces = [piece async for piece in stream]
    assert stream.generation is not None
    return pieces, stream.generation


async def test_every_choice_is_an_answer_of_its_own(service: Service) -> None:
    say_different_things(service)
    answer = await service.client.generate("Hi", n=4, seed=7, return_token_ids=True, top_logprobs=0)
    assert [choice.text for choice in answer.choices] == REPLIES
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.text == REPLIES[0]
    for choice in answer.choices:
        assert len(choice.token_ids) == len(choice.logprobs) == choice.output_tokens
        assert choice.output_tokens == len(choice.text.encode()) + 1
    assert answer.usage.output_tokens == sum(choice.output_tokens for choice in answer.choices)
    assert (answer.usage.prompt_tokens, answer.seed) == (2, 7)


async def test_choices_have_seeds_of_their_own_and_wait_for_the_first(service: Service) -> None:
    last = 2**53 - 1
    await service.client.generate("Hi", n=3, seed=last, temperature=1.0)
    first, second, third = service.engine.requests
    assert [request.sampling.seed for request in service.engine.requests] == [last, 0, 1]
    assert (first.after, second.after, third.after) == (None, first.request_id, first.request_id)


async def test_pieces_of_choices_alternate_and_add_up(service: Service) -> None:
    say_different_things(service)
    pieces, answer = await collect(service, n=4)
    texts: dict[int, str] = defaultdict(str)
    for piece in pieces:
        texts[piece.index] += piece.text
    assert [texts[index] for index in range(4)] == REPLIES
    assert [choice.text for choice in answer.choices] == REPLIES
    order = [index for index, _ in itertools.groupby(piece.index for piece in pieces)]
    assert len(order) > 4, "all of one choice came before the next"
    ends = [piece.index for piece in pieces if piece.finish_reason]
    assert sorted(ends) == [0, 1, 2, 3]


@pytest.mark.parametrize("tokens_per_output", [1, 2, 3, 5, 64])
async def test_no_piece_of_a_choice_ends_within_a_character(
    service: Service, tokens_per_output: int
) -> None:
    say_different_things(service)
    service.engine.tokens_per_output = tokens_per_output
    pieces, answer = await collect(service, n=4, top_logprobs=1, return_token_ids=True)
    assert [choice.text for choice in answer.choices] == REPLIES
    assert not any("\ufffd" in piece.text for piece in pieces)
    for choice in answer.choices:
        assert len(choice.token_ids) == len(choice.logprobs) == choice.output_tokens


@pytest.mark.parametrize("tokens_per_output", [1, 4, 64])
async def test_a_stop_sequence_ends_its_own_choice_only(
    service: Service, tokens_per_output: int
) -> None:
    say_different_things(service)
    service.engine.tokens_per_output = tokens_per_output
    pieces, answer = await collect(service, n=4, stop=["STOP", "wörld"], return_token_ids=True)
    assert [choice.text for choice in answer.choices] == ["Hello, ", REPLIES[1], "日本語。", ""]
    assert all("S" not in piece.text for piece in pieces if piece.index == 2)
    stopped = service.engine.tokenizer.decode(list(answer.choices[2].token_ids))
    assert stopped == "日本語。STOP"
    assert answer.choices[2].output_tokens == len(stopped.encode())


async def test_a_choice_that_a_stop_sequence_ended_is_aborted_at_once(service: Service) -> None:
    encode = service.engine.tokenizer.encode
    service.engine.token_ids = lambda request: itertools.cycle(
        encode("x." if index_of(request) else "xx", add_special_tokens=False)
    )
    async with service.client.stream("Hi", n=2, stop=".", max_output_tokens=500) as stream:
        async for piece in stream:
            if piece.finish_reason:
                break
        assert piece.index == 1
        assert [name.rpartition(".")[2] for name in service.engine.aborted] == ["1"]
        assert service.server.ledger()["live_sequences"] == 1
    await until_idle(service.server)


async def test_leaving_a_stream_ends_every_choice(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    service.engine.token_ids = lambda request: itertools.repeat(70)
    async with service.client.stream("Hi", n=8, adapter="dsum", max_output_tokens=500) as stream:
        await anext(stream)
        assert service.server.ledger()["live_sequences"] == 8
        assert service.server.ledger()["adapter_references"] == 8
    await until_idle(service.server, 0.5)


async def test_a_deadline_ends_every_choice(service: Service) -> None:
    service.engine.may_step.clear()
    with pytest.raises(DeadlineExpired):
        await service.client.generate("Hi", n=8, timeout=0.2)
    await until_idle(service.server, 0.5)
    service.engine.may_step.set()
    deadlines = {request.deadline for request in service.engine.requests}
    assert len(deadlines) == 1
    assert None not in deadlines


async def test_all_choices_are_queued_or_none(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, told = service.engine.submit, itertools.count()

    def submit_three(request: EngineRequest) -> None:
        if next(told) == 3:
            raise Overloaded("no room.")
        submit(request)

    monkeypatch.setattr(service.engine, "submit", submit_three)
    with pytest.raises(Overloaded):
        await service.client.generate("Hi", n=5)
    await until_idle(service.server, 0.5)


async def test_room_is_reserved_before_tokenising_and_given_back(service: Service) -> None:
    await service.client.generate("Hello", n=3)
    [(share, num_requests, num_tokens)] = service.engine.reservations.values()
    assert (share.adapter, num_requests, num_tokens) == ("", 3, 15)
    service.engine.submit_error = Overloaded("no room.")
    with pytest.raises(Overloaded):
        await service.client.generate("Hello")
    assert len(service.engine.requests) == 3
    service.engine.submit_error = None


async def test_echo_begins_every_choice_with_the_prompt(service: Service) -> None:
    say_different_things(service)
    pieces, answer = await collect(service, n=4, echo=True, return_token_ids=True)
    assert [choice.text for choice in answer.choices] == ["Hi" + reply for reply in REPLIES]
    assert all(len(choice.token_ids) == choice.output_tokens for choice in answer.choices)
    whole = await service.client.generate("Hi", n=4, echo=True)
    assert [choice.text for choice in whole.choices] == [c.text for c in answer.choices]
    assert "".join(piece.text for piece in pieces if piece.index == 3) == "Hi"


async def test_echo_is_what_the_model_read_without_special_tokens(
    service: Service, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "naïve"}]
    answer = await service.client.generate(messages=messages, echo=True, max_output_tokens=1)
    assert service.engine.requests[-1].prompt_token_ids[0] == BOS
    assert answer.text == "naïveH"
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    answer = await service.client.generate(
        variables={"dialogue": "A: hi"}, adapter="dsum", echo=True, max_output_tokens=1
    )
    assert answer.text == "Summarize: A: hi\nSummary:H"


async def test_a_character_that_begins_in_the_prompt_is_shown_whole(service: Service) -> None:
    head, *tail = service.engine.tokenizer.encode("é", add_special_tokens=False)
    service.engine.token_ids = lambda request: iter([*tail, EOS])
    answer = await service.client.generate(token_ids=[head], echo=True)
    assert answer.text == "é"
    assert (await service.client.generate(token_ids=[head])).text == "\ufffd"


async def test_a_stop_sequence_in_the_prompt_does_not_end_the_echo(service: Service) -> None:
    answer = await service.client.generate("Hi, you", echo=True, stop=[",", "uH"])
    assert answer.text == "Hi, youHello"


async def test_logprobs_tell_rank_and_alternatives(service: Service) -> None:
    answer = await service.client.generate("Hi", top_logprobs=2, return_token_ids=True)
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert {entry.rank for entry in answer.logprobs} == {1}
    for entry in answer.logprobs:
        assert [(token.token_id, token.logprob) for token in entry.top] == [(0, -1.0), (1, -2.0)]
    bare = await service.client.generate("Hi", top_logprobs=0)
    assert {entry.top for entry in bare.logprobs} == {()}
    assert (await service.client.generate("Hi")).logprobs == ()


async def test_prompt_logprobs_come_once_and_for_all_tokens_but_the_first(
    service: Service,
) -> None:
    _, answer = await collect(service, n=2, prompt_logprobs=1)
    whole = await service.client.generate("Hi", n=2, prompt_logprobs=1)
    assert answer.prompt_logprobs == whole.prompt_logprobs
    prompt = service.engine.requests[-1].prompt_token_ids
    assert [entry.token_id for entry in whole.prompt_logprobs] == list(prompt[1:])
    assert [len(entry.top) for entry in whole.prompt_logprobs] == [1]
    first, second = service.engine.requests[-2:]
    assert (first.prompt_logprobs, second.prompt_logprobs) == (1, None)
    assert answer.logprobs == ()


async def test_log_probabilities_that_no_message_could_carry_are_refused(tmp_path: Path) -> None:
    engine = FakeEngine(context_length=1_000_000, reply="Hello")
    async with running_service(tmp_path / "large", engine=engine) as service:
        client = service.client
        options: dict[str, Any] = {"top_logprobs": 20, "max_output_tokens": 14_000}
        with pytest.raises(InvalidRequest) as caught:
            await client.generate("Hi", **options)
        assert caught.value.metadata["item"] == "output.top_logprobs"
        assert [piece async for piece in client.stream("Hi", **options)]
        assert (await client.generate("Hi", **{**options, "top_logprobs": 1})).text == "Hello"
        with pytest.raises(InvalidRequest) as caught:
            async for _ in client.stream("x" * 14_000, prompt_logprobs=20):
                pass
        assert caught.value.metadata["item"] == "output.prompt_logprobs"
        answer = await client.generate("x" * 13_000, prompt_logprobs=20, max_output_tokens=1)
        assert len(answer.prompt_logprobs) == 12_999


async def test_least_output_holds_against_stop_sequences(service: Service) -> None:
    service.engine.reply = "a.b.c.d"
    ends = {}
    for least in range(8):
        answer = await service.client.generate("Hi", stop=".", min_output_tokens=least)
        ends[least] = answer.text
    assert ends == {
        0: "a", 1: "a", 2: "a", 3: "a.b", 4: "a.b", 5: "a.b.c", 6: "a.b.c", 7: "a.b.c.d"
    }  # fmt: skip
    assert service.engine.requests[-1].stopping.min_output_tokens == 7


async def test_least_and_most_output_must_agree(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    recipe_says_40: dict[str, Any] = {"variables": {"dialogue": "A"}, "adapter": "dsum"}
    for prompt, options in [
        ("Hi", {"max_output_tokens": 3, "min_output_tokens": 4}),
        ("Hi", {"min_output_tokens": 257}),
        (None, {**recipe_says_40, "min_output_tokens": 41}),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            await service.client.generate(prompt, **options)
        assert caught.value.metadata["item"] == "stopping.min_output_tokens"
    await service.client.generate(**recipe_says_40, min_output_tokens=40)


async def test_every_option_reaches_the_engine(service: Service) -> None:
    await service.client.generate(
        "Hi",
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        logit_bias={9: -100.0, 4: 2.5},
        seed=3,
        min_output_tokens=1,
        max_output_tokens=9,
        stop_token_ids=[5],
        ignore_eos=True,
        time_limit=30.5,
        top_logprobs=2,
        prompt_logprobs=0,
        priority="high",
        speculation=True,
        timeout=9.0,
    )
    request = service.engine.requests[-1]
    sampling, stopping = request.sampling, request.stopping
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 3)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.125, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-0.5, 0.75)
    assert (sampling.logit_bias, sampling.seed) == (((4, 2.5), (9, -100.0)), 3)
    assert (stopping.min_output_tokens, stopping.max_output_tokens) == (1, 9)
    assert stopping.stop_token_ids == {5}
    assert stopping.time_limit is not None
    assert 30 < stopping.time_limit <= 30.5
    assert (request.top_logprobs, request.prompt_logprobs) == (2, 0)
    assert (request.priority, request.speculation) == (1, True)
    assert request.deadline is not None


@pytest.mark.parametrize(("name", "value"), [("low", -1), ("normal", 0), ("high", 1), (None, 0)])
async def test_priorities_are_named(service: Service, name: Any, value: int) -> None:
    options = {} if name is None else {"priority": name}
    await service.client.generate("Hi", **options)
    assert service.engine.requests[-1].priority == value


async def test_concurrent_choices_leave_nothing_behind(service: Service) -> None:
    say_different_things(service)
    answers = await asyncio.gather(*(service.client.generate("Hi", n=8) for _ in range(12)))
    assert all(choice.text == REPLIES[choice.index % 4] for a in answers for choice in a.choices)
