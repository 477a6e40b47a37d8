"""The watchdog: a canary that fails or dawdles is withdrawn, one that does not is let be."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_support.press import Press
from server_support.fake_engine import FakeSequence
from server_support.service import Service, running_service

from polygraft.adapters.alias_records import AliasMove, AliasRecord, Target
from polygraft.adapters.errors import NonFinite
from polygraft.adapters.events import AdapterEvent, EventKind
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.server.canary_watch import CanaryConfig, CanaryWatch
from polygraft.server.engine.messages import SequenceOutput


class Bench:
    """A watch over one alias with a canary; moves are made before `note` returns."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.registry = Registry(LocalStore(folder / "store"))
        press = Press(folder)
        self.one, self.two = (press.publish(self.registry, "sum", n) for n in (1, 2))
        self.events: list[AdapterEvent] = []
        self.counted: list[str] = []
        self.executor = ThreadPoolExecutor(1)
        settings = CanaryConfig.model_validate({"watch": True, "min_requests": 20, **config})
        self.watch = CanaryWatch(
            self.registry, settings, self.executor, self.events.append, self.counted.append
        )
        self.split(1000)

    def split(self, weight: int) -> None:
        targets = (
            Target(self.one.digest, 1, 10_000 - weight),
            Target(self.two.digest, 2, weight),
        )
        self.registry.write_alias("sum", "live", AliasMove(targets))

    @property
    def alias(self) -> AliasRecord:
        alias = self.registry.live("sum")
        assert alias is not None
        return alias

    def note(self, one: list[float | None], two: list[float | None]) -> AliasRecord:
        """Outcomes of both versions; the alias as it is then."""
        alias = self.alias
        for digest, outcomes in ((self.one.digest, one), (self.two.digest, two)):
            for seconds in outcomes:
                self.watch.note(alias, digest, seconds)
        self.executor.submit(lambda: None).result()
        return self.alias


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_a_canary_that_fails_more_is_withdrawn(folder: Path) -> None:
    bench = Bench(folder)
    alias = bench.note([0.1] * 20, [0.1] * 18 + [None] * 2)
    assert [t.number for t in alias.targets] == [1]
    assert alias.moved_by == "watchdog"
    assert alias.reason == ("canary 2 withdrawn: 10.0% of 20 answers failed, 0.0% of version 1's")
    assert [event.kind for event in bench.events] == [EventKind.CANARY_WITHDRAWN]
    assert bench.counted == ["withdrawn"]
    assert len(bench.registry.alias_history("sum", "live")) == 3


def test_a_canary_that_dawdles_is_withdrawn(folder: Path) -> None:
    alias = Bench(folder).note([0.1] * 20, [0.25] * 20)
    assert alias.canary is None
    assert "answers take 0.250 s, those of version 1 0.100 s" in alias.reason


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([0.1] * 20, [0.15] * 20),  # slower, but not by the set amount
        ([0.1] * 20, [None] * 19),  # too few answers to judge
        ([0.1] * 19, [None] * 30),  # of the other one, too
        ([0.1] * 10 + [None] * 10, [0.1] * 10 + [None] * 10),  # both fail alike
        ([None] * 20, [0.1] * 20),  # the canary is the better one
    ],
)
def test_a_canary_that_is_not_worse_stays(
    folder: Path, one: list[float | None], two: list[float | None]
) -> None:
    bench = Bench(folder)
    assert bench.note(one, two).canary is not None
    assert bench.events == []


def test_outcomes_outlive_a_change_of_weights_but_not_a_change_of_versions(folder: Path) -> None:
    bench = Bench(folder)
    bench.note([0.1] * 20, [None] * 19)
    bench.split(2000)
    assert bench.note([], [None]).canary is None
    bench.split(1000)  # put in again by somebody: judged anew
    assert bench.note([0.1] * 20, [None] * 19).canary is not None


def test_answers_begun_before_a_move_do_not_wipe_out_those_behind_it(folder: Path) -> None:
    bench = Bench(folder)
    old = bench.alias
    bench.split(2000)
    bench.note([0.1] * 20, [None] * 19)
    bench.registry.move_alias("sum", "live", 1)
    bench.split(1000)
    bench.note([0.1] * 20, [None] * 19)
    for _ in range(20):
        bench.watch.note(old, bench.two.digest, 0.1)
    assert bench.note([], [None]).canary is None


def test_whoever_moved_the_alias_meanwhile_is_not_undone(folder: Path) -> None:
    bench = Bench(folder)
    old = bench.alias
    bench.registry.move_alias("sum", "live", 2)
    for digest, seconds in ((bench.one.digest, 0.1), (bench.two.digest, None)):
        for _ in range(20):
            bench.watch.note(old, digest, seconds)
    bench.executor.submit(lambda: None).result()
    assert bench.alias.number == 2
    assert bench.counted == ["moved_before"]


def test_it_does_nothing_unless_asked(folder: Path) -> None:
    bench = Bench(folder, watch=False)
    assert bench.note([0.1] * 50, [None] * 50).canary is not None


async def test_a_failing_canary_is_withdrawn_by_a_running_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"watch": True, "min_requests": 10}
    async with running_service(tmp_path / "store", canary=config) as service:
        service.publish("sum", tmp_path / "a", seed=1)
        bad = service.publish("sum", tmp_path / "b", seed=2)
        break_version(service, bad.digest)
        await service.client.move_alias("sum", "live", 1, canary=2, canary_weight=0.5)
        failed = 0
        async with service.client.watch("sum") as watch:
            await anext(watch)
            with caplog.at_level(logging.WARNING):
                for n in range(200):
                    try:
                        await service.client.generate("Hi", adapter="sum", sticky_key=str(n))
                    except NonFinite:
                        failed += 1
                    live = service.server.registry.live("sum")
                    if live is not None and live.canary is None:
                        break
            kinds = [(await asyncio.wait_for(anext(watch), 5)).kind for _ in range(2)]
        assert kinds == ["alias_moved", "canary_withdrawn"]
        assert 10 <= failed < 60
        await service.client.generate("Hi", adapter="sum")  # nobody gets the canary any more
        assert "sum@live: canary 2 withdrawn" in caplog.text
        name, labels = "polygraft_canary_withdrawals_total", {"outcome": "withdrawn"}
        assert service.metrics().get_sample_value(name, labels) == 1


def break_version(service: Service, digest: str) -> None:
    """What a version with numbers that overflow does: its answers end as not finite."""
    make_output = service.engine._next

    def next_output(sequence: FakeSequence) -> SequenceOutput:
        if digest in sequence.request.digests:
            error = NonFinite("the logits are not finite.")
            return SequenceOutput(sequence.request.request_id, error=error)
        return make_output(sequence)

    service.engine._next = next_output  # type: ignore[method-assign]
