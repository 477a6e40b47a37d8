"""The queue's caps, whose they are, and what the measured drain rate says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polygraft.adapters.errors import DeadlineExpired, Overloaded, PolygraftError
from polygraft.server.engine.drain_rate import DrainRate
from polygraft.server.engine.messages import EngineRequest, FairShare, Stopping
from polygraft.server.engine.queue_caps import QueueCaps, WaitingCount


class Queue:
    """Eight requests or 100 tokens, half of it for one of several; a clock at 0."""

    def __init__(self, max_requests: int = 8, max_tokens: int = 100) -> None:
        self.rate = DrainRate()
        self.count = WaitingCount(QueueCaps(max_requests, max_tokens), self.rate)
        self.number = 0

    def enter(
        self,
        namespace: str = "",
        tokens: int = 1,
        *,
        adapter: str = "",
        priority: int = 0,
        deadline: float | None = None,
    ) -> str:
        self.number += 1
        request = EngineRequest(
            str(self.number),
            (1,) * tokens,
            Stopping(1),
            share=FairShare(namespace, adapter),
            priority=priority,
            deadline=deadline,
        )
        self.count.enter(request, now=0.0)
        self.count.check_integrity()
        return request.request_id

    def fill(self, namespace: str, tokens: int = 1) -> int:
        """Enter until refused; how many got in."""
        entered = 0
        while True:
            try:
                self.enter(namespace, tokens)
            except Overloaded:
                return entered
            entered += 1

    def measure(self, tokens_per_second: int) -> None:
        for _ in range(20):
            self.rate.record(1.0, num_requests=2, num_tokens=tokens_per_second)


def test_a_namespace_alone_fills_the_whole_queue() -> None:
    assert Queue().fill("a") == 8
    assert Queue(max_requests=99).fill("a", tokens=10) == 10


def test_while_others_wait_a_namespace_has_its_share() -> None:
    queue = Queue()
    queue.enter("b")
    assert queue.fill("a") == 4
    assert queue.fill("b") == 3


def test_who_filled_the_queue_alone_does_not_keep_the_others_out() -> None:
    queue = Queue(max_requests=16)
    assert queue.fill("a") == 16
    assert queue.fill("b") == 2, "an eighth beyond the cap"
    assert queue.fill("a") == 0
    with pytest.raises(Overloaded, match="18 requests are waiting"):
        queue.enter("c")
    for number in range(1, 10):
        queue.count.leave(str(number))
    assert queue.fill("a") == 1, "8 of 16 are its share, and it holds 7"
    assert queue.fill("c") > 0


def test_one_request_of_any_length_is_let_in_when_nobody_waits() -> None:
    queue = Queue()
    queue.enter("a", tokens=5000)
    with pytest.raises(Overloaded, match="prompt tokens"):
        queue.enter("a", tokens=1)
    with pytest.raises(Overloaded):
        queue.enter("b", tokens=1)


def test_a_reservation_holds_room_until_it_is_given_back_or_used() -> None:
    queue = Queue()
    queue.count.reserve("r", FairShare("a"), num_requests=3, num_tokens=60)
    assert (queue.count.num_requests, queue.count.num_tokens) == (3, 60)
    with pytest.raises(Overloaded):
        queue.enter("a", tokens=41)
    queue.count.leave("r")
    queue.count.leave("r")
    assert (queue.count.num_requests, queue.count.num_tokens) == (0, 0)
    queue.count.reserve("2", FairShare("a"), num_requests=1, num_tokens=90)
    queue.enter("a", tokens=80)  # the request of that id: not counted twice
    assert (queue.count.num_requests, queue.count.num_tokens) == (1, 80)


def test_the_hint_when_to_retry_is_the_measured_time_the_queue_takes() -> None:
    queue = Queue()
    queue.fill("a", tokens=20)  # 100 tokens
    with pytest.raises(Overloaded) as unknown:
        queue.enter("a")
    assert unknown.value.retry_after == 1.0
    queue.measure(tokens_per_second=40)
    with pytest.raises(Overloaded) as known:
        queue.enter("a")
    assert known.value.retry_after == pytest.approx(100 / 40)
    few = Queue(max_requests=5, max_tokens=10_000)
    few.fill("a")
    few.measure(tokens_per_second=40)
    with pytest.raises(Overloaded) as known:
        few.enter("a")
    assert known.value.retry_after == pytest.approx(5 / 2), "two requests a second"


def test_nothing_is_said_of_deadlines_before_something_was_measured() -> None:
    queue = Queue()
    queue.enter(tokens=90)
    queue.enter(tokens=1, deadline=0.001)
    queue.rate.record(100.0, num_requests=1, num_tokens=1)  # one slow step proves nothing
    queue.enter(tokens=1, deadline=0.001)


def test_a_deadline_is_refused_when_the_queue_ahead_is_sure_to_take_longer() -> None:
    queue = Queue()
    queue.measure(tokens_per_second=10)
    queue.enter(tokens=80)  # 8 s, of which half is taken as certain
    queue.enter(tokens=1, deadline=4.5)
    with pytest.raises(DeadlineExpired, match="the queue takes about 8"):
        queue.enter(tokens=1, deadline=3.5)
    assert queue.count.num_deadlines_refused == 1
    assert queue.count.num_requests == 2


def test_a_deadline_that_has_passed_is_refused_whatever_is_known() -> None:
    with pytest.raises(DeadlineExpired):
        Queue().enter(deadline=-1.0)


def test_only_what_is_served_before_it_counts_against_a_deadline() -> None:
    queue = Queue(max_requests=100, max_tokens=10_000)
    queue.measure(tokens_per_second=10)
    queue.enter("hostile", tokens=1000)
    queue.enter("mine", tokens=1, deadline=0.5)  # nothing of mine waits: I am next
    queue.enter("mine", tokens=20, adapter="x", deadline=0.5)
    with pytest.raises(DeadlineExpired):  # 20 of mine, and as many of theirs meanwhile: 4.1 s
        queue.enter("mine", tokens=1, adapter="x", deadline=2.0)
    queue.enter("mine", tokens=1, adapter="x", deadline=2.2)
    queue.enter("mine", tokens=1, priority=1, deadline=0.5)
    with pytest.raises(DeadlineExpired):  # the classes above go first with all they have
        queue.enter("low", tokens=1, priority=-1, deadline=50.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.booleans(), st.integers(0, 30)),
        max_size=60,
    )
)
def test_whatever_comes_and_goes_caps_hold_and_counts_agree(
    events: list[tuple[str, int, bool, int]],
) -> None:
    queue = Queue()
    for namespace, tokens, reserves, leaves in events:
        try:
            if reserves:
                share = FairShare(namespace)
                queue.count.reserve(f"r{leaves}", share, num_requests=2, num_tokens=tokens)
            else:
                queue.enter(namespace, max(1, tokens))
        except PolygraftError:
            queue.count.leave(str(leaves))
            queue.count.leave(f"r{leaves}")
        queue.count.check_integrity()
        assert queue.count.num_requests <= 9
    for number in range(61):
        queue.count.leave(str(number))
        queue.count.leave(f"r{number}")
    assert (queue.count.num_requests, queue.count.num_tokens) == (0, 0)
    queue.count.check_integrity()
