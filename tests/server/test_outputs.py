"""From the engine's thread to the loop: one hand-over per step, bounded queues, no lost errors."""

from __future__ import annotations

import asyncio
import threading

import pytest

from polygraft.adapters.errors import Unavailable
from polygraft.server.engine.messages import FinishReason, SequenceOutput
from polygraft.server.outputs import OutputRouter, SlowReader


async def test_outputs_reach_their_queue_and_no_other() -> None:
    router = OutputRouter(asyncio.get_running_loop())
    one, two = router.open("one"), router.open("two")
    step = [SequenceOutput(name, (token,)) for name, token in (("two", 2), ("no", 0), ("one", 1))]
    threading.Thread(target=router.publish, args=(step,)).start()
    assert [d.output.token_ids for d in await one.take()] == [(1,)]
    assert [d.output.token_ids for d in await two.take()] == [(2,)]


async def test_a_reader_that_is_behind_takes_everything_at_once() -> None:
    router = OutputRouter(asyncio.get_running_loop())
    queue = router.open("one")
    for token in range(5):
        router.publish([SequenceOutput("one", (token,))])
    await asyncio.sleep(0.01)
    assert [d.output.token_ids for d in await queue.take()] == [(0,), (1,), (2,), (3,), (4,)]


async def test_too_many_unread_tokens_end_the_queue() -> None:
    router = OutputRouter(asyncio.get_running_loop(), max_pending_tokens=10)
    queue = router.open("one")
    for token in range(11):
        router.publish([SequenceOutput("one", (token,))])
    await asyncio.sleep(0.01)
    with pytest.raises(SlowReader):
        await queue.take()
    router.publish([SequenceOutput("one", finish_reason=FinishReason.STOP)])
    await asyncio.sleep(0.01)
    with pytest.raises(SlowReader):
        await queue.take()


async def test_reading_makes_room_again() -> None:
    router = OutputRouter(asyncio.get_running_loop(), max_pending_tokens=10)
    queue = router.open("one")
    for _ in range(5):
        for token in range(10):
            router.publish([SequenceOutput("one", (token,))])
        await asyncio.sleep(0.01)
        assert len(await queue.take()) == 10


async def test_an_error_for_all_wakes_all() -> None:
    router = OutputRouter(asyncio.get_running_loop())
    queues = [router.open(str(index)) for index in range(3)]
    waiting = [asyncio.create_task(queue.take()) for queue in queues]
    await asyncio.sleep(0)
    router.fail_all(Unavailable("gone."))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)


async def test_outputs_for_a_closed_request_are_dropped() -> None:
    router = OutputRouter(asyncio.get_running_loop())
    router.open("one")
    router.close("one")
    router.close("one")
    router.publish([SequenceOutput("one", (1,))])
    await asyncio.sleep(0.01)
    assert len(router) == 0


def test_publishing_after_the_loop_was_closed_is_harmless() -> None:
    loop = asyncio.new_event_loop()
    router = OutputRouter(loop)
    loop.close()
    router.publish([SequenceOutput("one", (1,))])
