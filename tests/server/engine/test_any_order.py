"""Whatever comes in whatever order: nothing is lost, nothing is mixed, everything ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_support.stepping import BLOCK, FakeMemory, Stepper
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from polygraft.adapters.errors import DeadlineExpired
from polygraft.server.engine.messages import PRIORITIES, FairShare, FinishReason

VERSIONS = ("a", "b", "c", "d")
SETUPS: dict[str, Sequence[Any]] = {
    "num_blocks": range(12, 41),
    "max_running": range(1, 7),
    "max_batch_tokens": range(6, 41),
    "max_chunk": range(1, 17),
    "max_step_adapters": range(1, 5),
    "max_skip": (0.02, 0.1),
    "prefix_cache": (True, False),
    "window": (None, None, 3, BLOCK, 11),
}
REQUESTS: dict[str, Sequence[Any]] = {
    "prompt": range(1, 27),
    "family": range(3),
    "output": range(1, 21),
    "adapters": ((), (), ("a",), ("b",), ("c",), ("a", "b"), ("c", "d")),
    "virtual": (0, 0, 0, 5),
    "namespace": ("", "x", "y"),
    "salt": ("", "x"),
    "priority": PRIORITIES,
    "time_limit": (None, None, None, 0.05, 0.5),
    "deadline": (None, None, None, 0.02, 0.3),
    "after": range(1, 30),  # so many requests ago: a live one, an ended one, or nobody
    "is_scoring": (False, False, False, True),
    "is_poisoned": (False, False, False, False, True),
}


def drawn(choices: dict[str, Sequence[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({key: st.sampled_from(list(c)) for key, c in choices.items()})


class World:
    """The scheduler and its blocks, driven by names and numbers."""

    def __init__(self, setup: dict[str, Any]) -> None:
        setup["max_batch_tokens"] = max(setup["max_batch_tokens"], setup["max_running"])
        self.stepper = Stepper(**setup)
        self.stepper.memory = FakeMemory()
        self.cancelled: set[str] = set()
        self.failed: set[str] = set()

    def submit(self, request: dict[str, Any]) -> None:
        fields = dict(request)
        name = str(len(self.stepper.tracks))
        family, length = fields.pop("family"), fields.pop("prompt")
        prompt = tuple((family * 31 + i * i) % 97 for i in range(length))  # families share prefixes
        if fields.pop("is_scoring") and length > 1:
            fields["score_from"], fields["output"] = 1 + length // 2, 0
        if fields["deadline"] is not None:
            fields["deadline"] += self.stepper.now
        namespace = fields.pop("namespace")
        adapter = "+".join(fields["adapters"])
        fields["after"] = str(int(name) - fields["after"])
        self.stepper.submit(name, prompt, share=FairShare(namespace, adapter), **fields)

    def cancel(self, ago: int) -> None:
        name = str(len(self.stepper.tracks) - ago)
        self.cancelled.add(name)
        self.stepper.scheduler.abort(name)

    def load(self, version: str) -> None:
        self.stepper.adapters.failures.pop(version, None)
        self.stepper.load(version)

    def fail(self, version: str) -> None:
        if version not in self.stepper.adapters.ready:
            self.failed.add(version)
            self.stepper.fail(version)

    def evict(self, version: str) -> None:
        if not self.stepper.adapters.holders[version]:
            self.stepper.adapters.ready.discard(version)

    def wait(self, steps: int) -> None:
        """Time passes in which nothing is computed."""
        self.stepper.num_steps += steps

    def check(self) -> None:
        self.stepper.check()

    def end(self) -> None:
        """Once all versions are there, everybody ends, for a reason that fits."""
        for version in VERSIONS:
            self.load(version)
        self.stepper.run()
        self.stepper.assert_clean()
        for name, track in self.stepper.tracks.items():
            self._check_end(name, track.sequence, is_poisoned=track.is_poisoned)

    def _check_end(self, name: str, sequence: Any, *, is_poisoned: bool) -> None:
        request = sequence.request
        if sequence.finish_reason is FinishReason.CANCELLED:
            assert name in self.cancelled
        elif sequence.finish_reason is FinishReason.TIME_LIMIT:
            assert request.stopping.time_limit is not None
        elif isinstance(sequence.error, DeadlineExpired):
            assert request.deadline is not None
        elif sequence.error is not None:
            assert self.failed & set(sequence.digests)
        else:
            expected = 0 if is_poisoned else request.stopping.max_output_tokens
            assert sequence.num_output == expected
            assert sequence.num_computed == 0, "its blocks were taken back"


class AnyOrder(RuleBasedStateMachine):
    """What hypothesis can think of; it finds the shortest way to a failure."""

    @initialize(setup=drawn(SETUPS))
    def start(self, setup: dict[str, Any]) -> None:
        self.world = World(setup)

    @rule(request=drawn(REQUESTS))
    def submit(self, request: dict[str, Any]) -> None:
        self.world.submit(request)

    @rule(ago=st.integers(-1, 30))
    def cancel(self, ago: int) -> None:
        self.world.cancel(ago)

    @rule(version=st.sampled_from(VERSIONS))
    def load(self, version: str) -> None:
        self.world.load(version)

    @rule(version=st.sampled_from(VERSIONS))
    def fail(self, version: str) -> None:
        self.world.fail(version)

    @rule(version=st.sampled_from(VERSIONS))
    def evict(self, version: str) -> None:
        self.world.evict(version)

    @rule(steps=st.integers(1, 30))
    def wait(self, steps: int) -> None:
        self.world.wait(steps)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.stepper.step()

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_steps_leak_nothing(seed: int) -> None:
    """Long lives, which hypothesis does not try: ten of a thousand steps and more each."""
    rng = random.Random(seed)

    def choose(choices: dict[str, Sequence[Any]]) -> dict[str, Any]:
        return {key: rng.choice(values) for key, values in choices.items()}

    world = World(choose(SETUPS))
    events: tuple[Callable[[], None], ...] = (
        *[lambda: world.submit(choose(REQUESTS))] * 6,
        lambda: world.cancel(rng.randint(-1, 30)),
        lambda: world.load(rng.choice(VERSIONS)),
        lambda: world.load(rng.choice(VERSIONS)),
        lambda: world.fail(rng.choice(VERSIONS)),
        lambda: world.evict(rng.choice(VERSIONS)),
    )
    for _ in range(1000):
        if rng.random() < 0.6:
            rng.choice(events)()
        world.stepper.step()
        world.check()
    assert len(world.stepper.tracks) > 250
    world.end()
