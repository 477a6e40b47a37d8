"""Who runs in a step: budget, blocks, adapters, siblings, ends. Fairness has a file of its own."""

from __future__ import annotations

from engine_support.stepping import Stepper

from polygraft.adapters.errors import DeadlineExpired
from polygraft.server.engine.messages import FinishReason
from polygraft.server.engine.sequence import SequenceState


def test_a_long_prompt_is_chunked_and_never_delays_decodes() -> None:
    stepper = Stepper()
    stepper.submit("short", 3, 20)
    stepper.step()
    long = stepper.submit("long", 30)
    seen = []
    while not long.num_output:
        seen.append(stepper.step())
    assert [step["short"] for step in seen] == [1] * 4
    assert [step["long"] for step in seen] == [8, 8, 8, 6]


def test_the_token_budget_is_kept() -> None:
    stepper = Stepper(max_batch_tokens=10, max_chunk=8)
    for i in range(5):
        stepper.submit(str(i), 7)
    assert stepper.step() == {"0": 7, "1": 3}


def test_a_cold_adapter_is_passed_over_and_admitted_when_ready() -> None:
    stepper = Stepper()
    stepper.submit("cold", 3, adapters=("cold",))
    stepper.submit("warm", 3, adapters=("warm",))
    assert stepper.step() == {"warm": 3}
    assert stepper.scheduler.waiting.num_loading == 1
    stepper.load("cold")
    assert stepper.step() == {"warm": 1, "cold": 3}


def test_an_adapter_that_left_the_device_keeps_only_its_own_requests_waiting() -> None:
    stepper = Stepper(max_running=1)
    stepper.submit("first", 3, 4)
    stepper.step()
    stepper.submit("left", 3, adapters=("warm",))
    stepper.submit("base", 3)
    stepper.adapters.ready.clear()
    while "first" in stepper.live:
        stepper.step()
    assert stepper.step() == {"base": 3}
    stepper.load("warm")
    stepper.run()
    stepper.assert_clean()


def test_a_composition_waits_for_all_its_adapters_and_fails_with_any() -> None:
    stepper = Stepper()
    stepper.submit("fails", 2, adapters=("cold", "warm"))
    assert stepper.step() == {}
    stepper.fail("cold")
    stepper.step()
    failed = stepper.tracks["fails"].sequence
    assert failed.error is stepper.adapters.failures.pop("cold")
    stepper.submit("runs", 2, adapters=("cold", "warm"))
    stepper.load("cold")
    assert stepper.step() == {"runs": 2}


def test_the_latest_admitted_is_preempted_and_goes_first_again() -> None:
    stepper = Stepper(num_blocks=4, max_chunk=32)
    for name in ("old", "young"):
        stepper.submit(name, 7, 9)
    while not stepper.scheduler.num_preemptions:
        stepper.step()
        stepper.check()
    assert list(stepper.scheduler.running) == ["old"]
    young = stepper.scheduler.waiting["young"]
    assert young.state is SequenceState.WAITING
    assert young.num_computed == 0
    assert young.num_output >= 1, "sampled tokens are kept"
    stepper.submit("new", 7, 9)
    stepper.run()
    assert stepper.tracks["young"].latency < stepper.tracks["new"].latency


def test_a_prompt_is_admitted_only_with_blocks_for_all_of_it() -> None:
    stepper = Stepper(num_blocks=10, max_chunk=8, prefix_cache=False)
    stepper.submit("small", 8, 13)
    stepper.submit("large", 30)
    assert stepper.step() == {"small": 8}
    stepper.run()
    assert stepper.scheduler.num_preemptions == 0, "half a prompt was in the way"


def test_an_aborted_and_an_expired_sequence_leave_at_the_next_sweep() -> None:
    stepper = Stepper(seconds_per_step=2.0)
    running = stepper.submit("running", 3)
    stepper.step()
    late = stepper.submit("late", 1, 20, time_limit=1.0)
    stepper.scheduler.abort("running")
    stepper.scheduler.abort("unknown")
    stepper.step()
    assert running.finish_reason is FinishReason.CANCELLED
    assert stepper.live == {"late"}
    stepper.step()
    assert late.finish_reason is FinishReason.TIME_LIMIT
    assert late.num_output == 1, "what was made until then is kept"
    stepper.assert_clean()


def test_waiting_past_the_deadline_ends_before_any_work_and_running_does_not() -> None:
    stepper = Stepper(max_running=1, seconds_per_step=1.0)
    running = stepper.submit("running", 3, 10, deadline=3.0)
    waiting = stepper.submit("waiting", 3, 10, deadline=3.0)
    for _ in range(4):
        stepper.step()
    assert isinstance(waiting.error, DeadlineExpired)
    assert waiting.first_scheduled_at is None
    assert stepper.live == {"running"}
    stepper.run()
    assert running.num_output == 10


def test_a_sibling_waits_until_the_prompt_is_computed_and_then_shares_it() -> None:
    stepper = Stepper()
    stepper.submit("r.0", 30)
    stepper.submit("r.1", 30, after="r.0")
    stepper.submit("r.2", 30, after="r.0")
    for expected in (8, 8, 8, 6):
        assert stepper.step() == {"r.0": expected}
    assert stepper.step() == {"r.0": 1, "r.1": 2, "r.2": 2}, "all but the last block is shared"
    stepper.run()
    stepper.assert_clean()


def test_a_sibling_goes_on_alone_when_the_one_before_it_ends() -> None:
    stepper = Stepper()
    stepper.submit("r.0", 30)
    stepper.submit("r.1", 30, after="r.0")
    stepper.submit("other", 3, after="never heard of")
    assert stepper.step() == {"r.0": 8, "other": 3}
    stepper.scheduler.abort("r.0")
    assert stepper.step() == {"other": 1, "r.1": 8}
    stepper.run()
    stepper.assert_clean()


def test_scoring_the_same_context_twice_computes_it_once() -> None:
    stepper = Stepper()
    stepper.submit("s.0", tuple(range(21)), 0, score_from=17)
    while stepper.live:
        stepper.step()
    other = (*range(17), 50, 51, 52, 53)
    stepper.submit("s.1", other, 0, score_from=17)
    assert stepper.step() == {"s.1": 5}, "the four full blocks of the context were kept"


def test_blocks_of_one_sequence_are_adjacent_while_there_is_room() -> None:
    stepper = Stepper(num_blocks=64, max_chunk=32)
    for i in range(4):
        stepper.submit(str(i), 9, 11)
    for _ in range(10):
        stepper.step()
    for sequence in stepper.scheduler.running.values():
        assert sequence.first_cell(sequence.num_computed) is not None


def test_adapters_that_the_step_has_no_room_for_wait_but_not_longer_than_max_skip() -> None:
    stepper = Stepper(max_step_adapters=1, max_skip=0.1, seconds_per_step=0.01)
    stepper.load("other")
    for i in range(60):  # a stream that never leaves a gap by itself
        stepper.submit(f"warm{i}", 3, 5, adapters=("warm",))
    stepper.submit("other", 3, 5, adapters=("other",))
    seen = []
    while not stepper.tracks["other"].first_token:
        seen.append(stepper.step())
        stepper.check()
    admitted_before = {name for step in seen[:10] for name in step}
    assert len(admitted_before) > 8, "until then the adapter that runs is served on"
    assert stepper.tracks["other"].wait <= 10 + 5 + 2, "max_skip, and those that run to end"
    assert any(name.startswith("warm") for name in stepper.live)
    stepper.run()
    stepper.assert_clean()


def test_rank_columns_of_a_step_are_bounded() -> None:
    stepper = Stepper(max_step_columns=40)  # each version takes 16
    for name in ("a", "b", "c"):
        stepper.load(name)
        stepper.submit(name, 3, 4, adapters=(name,))
    assert stepper.step() == {"a": 3, "b": 3}
    stepper.run()
    stepper.assert_clean()


def test_timers_of_sequences_that_ended_early_do_not_pile_up() -> None:
    stepper = Stepper(max_running=2)
    waiting = stepper.submit("waiting", 3, adapters=("cold",), deadline=50.0)
    for i in range(5000):
        stepper.submit(str(i), 3, 1, deadline=1e9)
        stepper.step()
    assert len(stepper.scheduler._timers) < 1100
    while "waiting" in stepper.live:
        stepper.step()
    assert isinstance(waiting.error, DeadlineExpired), "its timer was kept"
    assert stepper.now >= 50.0
