"""GenerationService from end to end, on an engine whose answer the test knows."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_support.service import DSUM_RECIPE, Service, until_idle
from tiny_models import BOS, EOS, byte_tokenizer

from polygraft.client import (
    DeadlineExpired,
    Generation,
    InvalidRequest,
    Overloaded,
    PolygraftError,
    ScoreItem,
)
from polygraft.server.engine.messages import EngineRequest

LETTER_A = byte_tokenizer().encode("a")[0]


def endless(request: EngineRequest) -> Iterator[int]:
    return itertools.repeat(LETTER_A)


async def collect(service: Service, prompt: str, **options: object) -> tuple[list[str], Generation]:
    stream = service.client.stream(prompt, **options)  # type: ignore[arg-type]
    pieces = [piece.text async for piece in stream]
    assert stream.generation is not None
    return pieces, stream.generation


async def test_a_whole_answer_says_what_it_cost_and_why_it_ended(service: Service) -> None:
    answer = await service.client.generate("Hi", return_token_ids=True, top_logprobs=0)
    assert answer.text == "Hello, wörld! 😀"
    assert answer.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (2, 1)
    assert answer.usage.output_tokens == len(answer.text.encode()) + 1
    assert answer.token_ids[-1] == EOS
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert {entry.logprob for entry in answer.logprobs} == {-0.5}
    assert answer.version is None
    assert len(answer.request_id) == 32


async def test_a_stream_has_whole_characters_and_adds_up_to_the_answer(service: Service) -> None:
    pieces, answer = await collect(service, "Hi")
    assert "".join(pieces) == answer.text == service.engine.reply
    assert len(pieces) > 1
    assert "\ufffd" not in "".join(pieces)


async def test_tokens_and_logprobs_are_sent_only_when_asked_for(service: Service) -> None:
    bare = await service.client.generate("Hi")
    assert bare.token_ids == ()
    assert bare.logprobs == ()


async def test_an_answer_ends_at_the_longest_length(service: Service) -> None:
    answer = await service.client.generate("Hi", max_output_tokens=5)
    assert (answer.text, answer.finish_reason) == ("Hello", "length")


async def test_half_a_character_at_the_end_is_shown_as_such(service: Service) -> None:
    answer = await service.client.generate("Hi", max_output_tokens=9)
    assert answer.text == "Hello, w\ufffd"


async def test_the_default_length_is_what_the_context_leaves_up_to_256(service: Service) -> None:
    service.engine.token_ids = endless
    assert (await service.client.generate("Hi")).usage.output_tokens == 256
    assert (await service.client.generate("x" * 500)).usage.output_tokens == 12


@pytest.mark.parametrize("stop", [["wör"], ["r", "wör"], ["wör", "never"]])
async def test_a_stop_sequence_ends_the_answer_and_is_not_shown(
    service: Service, stop: list[str]
) -> None:
    pieces, answer = await collect(service, "Hi", stop=stop)
    assert "".join(pieces) == answer.text == "Hello, "
    assert answer.finish_reason == "stop"
    await until_idle(service.server)


async def test_tokens_after_a_stop_sequence_do_not_count(service: Service) -> None:
    service.engine.tokens_per_step = 50
    answer = await service.client.generate("Hi", stop=[","], return_token_ids=True)
    assert service.engine.tokenizer.decode(list(answer.token_ids)) == "Hello,"
    assert answer.usage.output_tokens == 6


async def test_text_held_back_for_a_stop_sequence_is_shown_at_the_end(service: Service) -> None:
    service.engine.reply = "wait for it: STO"
    pieces, answer = await collect(service, "Hi", stop=["STOP"])
    assert "".join(pieces) == answer.text == "wait for it: STO"


async def test_a_stop_token_is_counted_but_not_shown(service: Service) -> None:
    comma = service.engine.tokenizer.encode(",")[0]
    answer = await service.client.generate("Hi", stop_token_ids=[comma])
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("Hello", "stop", 6)


async def test_ignoring_eos_goes_on_to_the_length(service: Service) -> None:
    service.engine.token_ids = lambda request: iter([EOS] * 10)
    answer = await service.client.generate("Hi", ignore_eos=True, max_output_tokens=4)
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("", "length", 4)


async def test_a_time_limit_gives_the_text_made_so_far(service: Service) -> None:
    service.engine.token_ids = endless
    answer = await service.client.generate("Hi", time_limit=0.2, max_output_tokens=500)
    assert answer.finish_reason == "time_limit"
    assert set(answer.text) == {"a"}


async def test_a_seed_is_drawn_and_reported_or_used_as_given(service: Service) -> None:
    drawn = {(await service.client.generate("Hi")).seed for _ in range(3)}
    assert len(drawn) == 3
    assert drawn == {request.sampling.seed for request in service.engine.requests}
    assert (await service.client.generate("Hi", seed=7)).seed == 7


async def test_sampling_reaches_the_engine_and_defaults_to_greedy(service: Service) -> None:
    await service.client.generate("Hi")
    await service.client.generate("Hi", temperature=0.75, top_p=0.5, top_k=3)
    greedy, sampled = (request.sampling for request in service.engine.requests)
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0.0, 1.0, 0)
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.75, 0.5, 3)


async def test_variables_fill_the_recipe_and_take_its_defaults(
    service: Service, tmp_path: Path
) -> None:
    version = service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    service.engine.reply = "They met.\n\nMore"
    answer = await service.client.generate(variables={"dialogue": "A: hi"}, adapter="dsum")
    assert answer.text == "They met."
    assert answer.version is not None
    assert (answer.version.digest, answer.version.number) == (version.digest, 1)
    request = service.engine.requests[-1]
    prompt = service.engine.tokenizer.decode(list(request.prompt_token_ids))
    assert prompt == "Summarize: A: hi\nSummary:"
    assert request.sampling.temperature == 0.5
    assert request.stopping.max_output_tokens == 40


async def test_a_request_overrides_the_defaults_of_the_recipe(
    service: Service, tmp_path: Path
) -> None:
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    await service.client.generate(
        variables={"dialogue": "A"}, adapter="dsum", temperature=0.0, max_output_tokens=3
    )
    request = service.engine.requests[-1]
    assert request.sampling.temperature == 0.0
    assert request.stopping.max_output_tokens == 3


async def test_messages_go_through_the_chat_template_of_the_base(service: Service) -> None:
    await service.client.generate(messages=[{"role": "user", "content": "Hi"}])
    ids = service.engine.requests[-1].prompt_token_ids
    assert ids[0] == BOS
    assert service.engine.tokenizer.decode(list(ids)) == "<s><u>Hi<a>"


async def test_tokenize_tells_what_generate_would_feed(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a", recipe=DSUM_RECIPE)
    client = service.client
    asked: list[tuple[str | None, Any]] = [
        ("Hi", {}),
        (None, {"messages": [{"role": "user", "content": "Hi"}]}),
        (None, {"variables": {"dialogue": "Hi"}, "adapter": "dsum"}),
    ]
    for prompt, options in asked:
        ids = await client.tokenize(prompt, **options)
        await client.generate(prompt, **options)
        assert service.engine.requests[-1].prompt_token_ids == tuple(ids)


async def test_detokenize_undoes_tokenize(service: Service) -> None:
    ids = await service.client.tokenize("naïve 😀")
    assert await service.client.detokenize([BOS, *ids]) == "naïve 😀"
    whole = await service.client.detokenize([BOS, *ids], skip_special_tokens=False)
    assert whole == "<s>naïve 😀"


async def test_scores_are_those_of_the_continuations_tokens(service: Service) -> None:
    items = [
        ScoreItem("bc", prompt="a"),
        ScoreItem([4, 6], token_ids=[1, 2, 3]),
        ScoreItem("b", messages=[{"role": "user", "content": "Hi"}]),
    ]
    first, second, third = await service.client.score(items)
    b, c = service.engine.tokenizer.encode("bc")
    assert [token.token_id for token in first.tokens] == [b, c]
    assert first.logprob == -float(b + c)
    assert not first.is_greedy
    assert (second.logprob, second.is_greedy) == (-10.0, True)
    assert second.usage.prompt_tokens == 5
    assert [token.token_id for token in third.tokens] == [b]


async def test_continuations_of_one_context_wait_for_the_first(service: Service) -> None:
    await service.client.score(
        [*ScoreItem.each(["b", "c", "d"], prompt="a"), ScoreItem("b", prompt="x")],
        priority="low",
    )
    first, second, third, other = service.engine.requests
    assert (first.after, other.after) == (None, None)
    assert second.after == third.after == first.request_id
    assert {request.priority for request in service.engine.requests} == {-1}
    [(_, num_requests, num_tokens)] = service.engine.reservations.values()
    assert (num_requests, num_tokens) == (4, 8)


@pytest.mark.parametrize(
    ("items", "code", "place"),
    [
        (ScoreItem.each(["b", "c" * 512], prompt="a"), "PROMPT_TOO_LONG", "[0].continuations[1]"),
        (
            ScoreItem.each([[1], [1] * 512], token_ids=[1]),
            "PROMPT_TOO_LONG",
            "[0].continuations[1]",
        ),
        (
            [ScoreItem("b", prompt="a"), ScoreItem("c", prompt="x" * 512)],
            "PROMPT_TOO_LONG",
            "[1].continuations[0]",
        ),
        (
            [ScoreItem("b", prompt="a"), *ScoreItem.each(["b", "c"], token_ids=[])],
            "EMPTY_PROMPT",
            "[1].continuations[0]",
        ),
    ],
    ids=["text", "tokens", "context", "empty context"],
)
async def test_a_continuation_that_cannot_be_scored_is_named(
    service: Service, items: list[ScoreItem], code: str, place: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await service.client.score(items)
    assert (caught.value.code, caught.value.metadata["item"]) == (code, f"items{place}")
    assert service.engine.requests == []


async def test_the_model_tells_its_facts_and_limits(service: Service) -> None:
    model = await service.client.model()
    assert (model.name, model.context_length, model.vocab_size) == ("paper", 512, 264)
    assert model.eos_token_ids == (EOS,)
    assert model.has_chat_template
    assert model.max_rank == 256


async def test_moving_live_changes_new_requests_and_not_running_ones(
    service: Service, tmp_path: Path
) -> None:
    one = service.publish("dsum", tmp_path / "a", seed=1)
    two = service.publish("dsum", tmp_path / "b", seed=2)
    service.engine.may_step.clear()
    running = asyncio.create_task(service.client.generate("Hi", adapter="dsum"))
    while not service.engine.requests:
        await asyncio.sleep(0.005)
    await service.client.move_alias("dsum", "live", two.number)
    service.engine.may_step.set()
    new = await service.client.generate("Hi", adapter="dsum")
    old = await running
    assert old.version is not None
    assert new.version is not None
    assert (old.version.digest, new.version.digest) == (one.digest, two.digest)


async def test_cancelling_a_stream_frees_everything(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    service.engine.token_ids = endless
    async with service.client.stream("Hi", adapter="dsum", max_output_tokens=500) as stream:
        await anext(stream)
        assert service.server.ledger()["live_requests"] == 1
        assert service.server.ledger()["adapter_references"] == 1
    await until_idle(service.server, 0.5)


async def test_cancelling_before_the_first_token_frees_everything(service: Service) -> None:
    service.engine.may_step.clear()
    calls = [asyncio.create_task(service.client.generate("Hi")) for _ in range(8)]
    while len(service.engine.requests) < 8:
        await asyncio.sleep(0.005)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await until_idle(service.server, 0.5)
    service.engine.may_step.set()


async def test_a_deadline_ends_the_generation_and_frees_everything(service: Service) -> None:
    service.engine.may_step.clear()
    with pytest.raises(DeadlineExpired):
        await service.client.generate("Hi", timeout=0.2)
    await until_idle(service.server, 0.5)
    service.engine.may_step.set()


async def test_a_dropped_iterator_ends_the_generation(service: Service) -> None:
    service.engine.token_ids = endless
    stream = service.client.stream("Hi", max_output_tokens=500)
    async for _ in stream:
        service.engine.may_step.clear()
        break
    del stream
    await until_idle(service.server, 1.0)
    service.engine.may_step.set()


async def test_a_mixed_crowd_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    service.engine.token_ids = endless

    async def one(index: int) -> str:
        try:
            if index % 4 == 0:
                async with service.client.stream("Hi", max_output_tokens=400) as stream:
                    await anext(stream)
                return "cancelled"
            if index % 4 == 1:
                await service.client.generate("Hi", max_output_tokens=400, timeout=0.05)
            adapter = "dsum" if index % 4 == 2 else ""
            await service.client.generate("Hi", adapter=adapter, max_output_tokens=5)
            return "finished"
        except DeadlineExpired:
            return "expired"

    endings = await asyncio.gather(*(one(index) for index in range(60)))
    assert set(endings) == {"cancelled", "expired", "finished"}
    await until_idle(service.server, 1.0)


async def test_an_adapter_that_cannot_be_loaded_is_told_to_the_request(
    service: Service, tmp_path: Path
) -> None:
    version = service.publish("dsum", tmp_path / "a")
    for path in service.server.registry.files(version.digest).values():
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    with pytest.raises(PolygraftError) as caught:
        await service.client.generate("Hi", adapter="dsum")
    assert caught.value.code == "ADAPTER_CORRUPT"


async def test_requests_that_pile_up_before_the_tokeniser_are_refused_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_encode = threading.Event()
    generation = service.server.generation
    encode = generation._encoder.encode

    def slow_encode(*arguments: Any) -> Any:
        may_encode.wait(10)
        return encode(*arguments)

    monkeypatch.setattr(generation._encoder, "encode", slow_encode)
    monkeypatch.setattr(generation, "_max_preparing", 3)
    taken = [asyncio.create_task(service.client.generate("Hi")) for _ in range(3)]
    while generation.num_live < 3:
        await asyncio.sleep(0.005)
    with pytest.raises(Overloaded) as caught:
        await service.client.generate("Hi")
    assert caught.value.code == "QUEUE_FULL"
    may_encode.set()
    assert {answer.text for answer in await asyncio.gather(*taken)} == {service.engine.reply}


async def test_a_request_is_refused_before_anything_is_queued(service: Service) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        await service.client.generate("Hi", temperature=-1)
    assert service.engine.requests == []
    assert time.monotonic() - started < 1
