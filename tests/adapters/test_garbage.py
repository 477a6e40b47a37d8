"""Garbage collection: what goes, what stays, and a publish of the same bytes at the same moment."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from adapter_support.press import Press

from polygraft.adapters.claims import CLAIMS, CONDEMNED, claim
from polygraft.adapters.errors import AdapterCorrupt, Unavailable
from polygraft.adapters.failpoints import activate
from polygraft.adapters.garbage import DAY, GarbageCollector
from polygraft.adapters.manifest import canonical_json
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.protocol import Store

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(store: Store, clock: Clock) -> GarbageCollector:
    return GarbageCollector(store, clock=clock)


def blobs(store: Store) -> set[str]:
    return {*store.list("blobs/"), *store.list("manifests/")}


def test_what_was_deleted_goes_in_the_second_pass_a_day_later(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    gone, kept = press.publish(registry, "sum", 1), press.publish(registry, "sum", 2)
    registry.move_alias("sum", "live", 2)
    registry.delete_version("sum", 1)
    before = blobs(store)
    first = collector.collect()
    assert (first.deleted, first.waiting) == ([], 2)  # its manifest and config; weights are shared
    clock.now += DAY - 1
    assert collector.collect().deleted == []
    clock.now += 1
    last = collector.collect()
    assert before - blobs(store) == set(last.deleted)
    assert last.num_bytes == sum(
        len(data) for data in (canonical_json(gone.manifest), press.config_of(1))
    )
    assert last.deleted[0].startswith("manifests/")
    assert Registry(store).files(kept.digest)
    assert collector.collect().deleted == []


def test_one_pass_is_never_enough(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    clock.now += 30 * DAY
    assert collector.collect().deleted == []


def test_what_is_referred_to_again_starts_anew(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    collector.collect()
    clock.now += 23 * HOUR
    press.publish(registry, "sum", 1)
    collector.collect()
    clock.now += HOUR
    registry.delete_adapter("sum")
    assert collector.collect().deleted == []
    clock.now += DAY
    assert len(collector.collect().deleted) == 3


def test_a_dry_run_tells_and_changes_nothing(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    collector.collect()
    clock.now += DAY
    before = list(store.list(""))
    told = collector.collect(dry_run=True)
    assert list(store.list("")) == before
    done = collector.collect()
    assert (told.deleted, told.num_bytes) == (done.deleted, done.num_bytes)
    assert len(done.deleted) == 3


def test_what_a_publish_under_way_claims_is_kept(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    everything = sorted(blobs(store))
    collector.collect()
    store.create(
        f"{CLAIMS}abc.json", json.dumps({"keys": everything, "at": clock.now + DAY}).encode()
    )
    clock.now += DAY
    assert collector.collect().deleted == []
    clock.now += DAY + 1  # the process died
    collector.collect()
    assert list(store.list(CLAIMS)) == []
    clock.now += DAY
    assert sorted(collector.collect().deleted) == everything


def test_the_last_ten_moves_of_an_alias_stay_and_the_log_goes_on(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry, behind = Registry(store), Registry(store)
    for content in (1, 2):
        press.publish(registry, "sum", content)
    behind.follow()
    for turn in range(20):
        registry.move_alias("sum", "live", turn % 2 + 1, reason=str(turn))
    assert collector.collect().pruned_generations == 0  # all of today
    clock.now += DAY + 60
    assert collector.collect(dry_run=True).pruned_generations == 10
    assert collector.collect().pruned_generations == 10
    again = Registry(store)
    assert [move.generation for move in again.alias_history("sum", "live")] == [*range(11, 21)]
    assert again.resolve("sum").number == 2
    assert again.move_alias("sum", "live", 1, expected_generation=20).generation == 21
    # One that has seen none of them must not take a number whose entry is gone.
    assert behind.move_alias("sum", "live", 2).generation == 22
    registry.follow()
    assert registry.resolve("sum").number == 2


def test_nothing_is_deleted_while_a_record_cannot_be_read(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    for content, name in ((1, "a"), (2, "b")):
        press.publish(registry, name, content)
    registry.delete_adapter("b")
    collector.collect()
    clock.now += DAY
    store.delete("versions/_/a/0000000001.json")
    store.create("versions/_/a/0000000001.json", b"not JSON")
    before = list(store.list(""))
    with pytest.raises(AdapterCorrupt, match="not JSON"):
        collector.collect()
    assert list(store.list("")) == before


def test_what_is_published_between_the_look_and_the_delete_is_spared(
    store: Store, press: Press, collector: GarbageCollector, clock: Clock
) -> None:
    registry = Registry(store)
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    collector.collect()
    clock.now += DAY
    unreferenced = collector._unreferenced

    def then_published(*arguments: object) -> dict[str, float]:
        found = unreferenced(*arguments)  # type: ignore[arg-type]
        press.publish(registry, "sum", 1)
        return found

    collector._unreferenced = then_published  # type: ignore[method-assign, assignment]
    report = collector.collect()
    assert (report.deleted, len(report.spared)) == ([], 3)
    assert registry.files(registry.resolve("sum").digest)
    assert list(store.list(CONDEMNED)) == []


def test_a_publish_waits_for_a_collector_and_not_for_ever(store: Store) -> None:
    store.create(f"{CONDEMNED}blobs/x", b"{}")
    with claim(store, ["blobs/y"], patience=0):
        pass
    with (
        pytest.raises(Unavailable, match="polygraft store gc"),
        claim(store, ["blobs/x"], patience=0),
    ):
        raise AssertionError("the claim was granted")
    assert list(store.list(CLAIMS)) == []
    GarbageCollector(store).collect()  # the mark has no time: whoever made it is gone
    with claim(store, ["blobs/x"], patience=0):
        assert len(list(store.list(CLAIMS))) == 1


def test_the_command_says_what_it_frees(
    tmp_path: Path, press: Press, capsys: pytest.CaptureFixture[str]
) -> None:
    from polygraft.commands.store import gc
    from polygraft.server.config import ConfigError

    directory = tmp_path / "served"
    with pytest.raises(ConfigError, match="holds no store"):
        gc(store=str(directory))
    registry = Registry(LocalStore(directory / "store"))
    press.publish(registry, "sum", 1)
    registry.delete_adapter("sum")
    gc(store=str(directory))
    assert "freed 0 bytes in 0 files\n3 more are not referenced" in capsys.readouterr().out
    gc(store=str(directory), min_age=0, dry_run=True)
    told = capsys.readouterr().out
    gc(store=str(directory), min_age=0)
    done = capsys.readouterr().out
    assert told.replace("would free", "freed") == done
    assert "bytes in 3 files" in done
    assert blobs(LocalStore(directory / "store")) == set()


def test_a_publish_of_the_same_bytes_beside_a_collector_is_never_harmed(
    store: Store, press: Press
) -> None:
    """A collector without patience runs all the time, and is slow where it hurts most."""
    made = {content: press.make(content) for content in (1, 2)}
    collector = GarbageCollector(store, min_age=0.0)
    stop, passes = threading.Event(), 0
    failures: list[BaseException] = []
    deleted = 0

    def collect() -> None:
        nonlocal passes, deleted
        while not stop.is_set():
            try:
                deleted += len(collector.collect().deleted)
            except BaseException as error:
                failures.append(error)
                return
            passes += 1

    activate("garbage.delete=delay:2,publish.manifest=delay:2")
    thread = threading.Thread(target=collect)
    thread.start()
    try:
        registry = Registry(store)
        for turn in range(40):
            manifest, files = made[turn % 2 + 1]
            record = registry.publish("sum", manifest, files)
            for path in registry.files(record.digest).values():
                assert path.stat().st_size
            registry.delete_adapter("sum")
    finally:
        stop.set()
        thread.join()
        activate(None)
    assert failures == []
    assert passes > 2
    assert deleted > 0
