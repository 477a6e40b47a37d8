"""Residency with its threads: loads, waits, evictions and unloads as callers see them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from adapter_support.fake_device import FakeDevice, weights_of_rank

from polygraft.adapters import resident
from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    DeadlineExpired,
    Unavailable,
)
from polygraft.adapters.residency import Residency, Tier
from polygraft.adapters.weights import AdapterWeights

COPY_BYTES = 16 * 64  # host bytes of a version of rank 16


class Bench:
    """A residency over a fake device of 64 rows. Version "a:32" has rank 32; default rank 16."""

    def __init__(self, host_bytes: int = 1 << 20, *, patience: float = 3600.0) -> None:
        self.device = FakeDevice()
        self.reads: Counter[str] = Counter()
        self.read_error: Exception | None = None
        self.may_read = threading.Event()
        self.may_read.set()
        self.changes: list[str] = []
        self.events: list[tuple[str, str, Tier]] = []
        self.residency = Residency(
            self.read,
            self.device,
            host_bytes=host_bytes,
            on_change=self.changes.append,
            observer=self,
            patience=patience,
        )

    def read(self, digest: str) -> AdapterWeights:
        assert self.may_read.wait(10)
        self.reads[digest] += 1
        if self.read_error is not None:
            raise self.read_error
        return weights_of_rank(int(digest.partition(":")[2] or 16))

    def loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        assert seconds >= 0
        self.events.append(("loaded", digest, tier))

    def evicted(self, digest: str, tier: Tier) -> None:
        self.events.append(("evicted", digest, tier))

    def load(self, *digests: str) -> None:
        for digest in digests:
            self.residency.load(digest, timeout=5)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    finish(made)


@pytest.fixture
def hasty() -> Iterator[Bench]:
    """Versions make room for others as soon as anybody waits."""
    made = Bench(patience=0.0)
    yield made
    finish(made)


def finish(bench: Bench) -> None:
    """The ledger: after everybody has left and all is unloaded nothing is held anywhere."""
    bench.may_read.set()
    bench.device.may_copy.set()
    assert bench.residency.total_references() == 0
    for version in bench.residency.snapshot():
        bench.residency.unload(version.digest, timeout=5)
    bench.residency.check_integrity()
    assert bench.residency.host_bytes() == 0
    assert bench.device.places == {}
    assert bench.device.misuse == []
    bench.device.pool.check_integrity()
    bench.residency.close()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def test_acquire_brings_a_version_to_the_device_and_tells(bench: Bench) -> None:
    bench.residency.acquire("a")
    eventually(lambda: bench.residency.is_ready("a"))
    eventually(lambda: bench.changes == ["a"])
    assert bench.residency.tier("a") is Tier.DEVICE
    assert bench.residency.references("a") == 1
    assert bench.device.filled == {"a"}
    assert bench.events == [("loaded", "a", Tier.HOST), ("loaded", "a", Tier.DEVICE)]
    bench.residency.release("a")
    assert bench.residency.is_ready("a")


def test_several_versions_are_held_together_or_not_at_all(bench: Bench) -> None:
    bench.device.may_copy.clear()
    bench.residency.acquire("a", "b")
    eventually(lambda: bool(bench.device.places))
    assert not bench.residency.hold("a", "b")
    bench.device.may_copy.set()
    eventually(lambda: bench.residency.is_ready("a", "b"))
    assert bench.residency.hold("a", "b")
    bench.residency.drop("a", "b")
    bench.residency.release("a", "b")


def test_a_hundred_callers_cause_one_load(bench: Bench) -> None:
    bench.may_read.clear()
    for _ in range(50):
        bench.residency.acquire("a")
    with ThreadPoolExecutor(50) as pool:
        loads = [pool.submit(bench.load, "a") for _ in range(50)]
        eventually(lambda: bench.residency.tier("a") is Tier.LOADING)
        bench.may_read.set()
        for load in loads:
            load.result()
    assert bench.reads["a"] == 1
    assert bench.device.copies["a"] == 1
    for _ in range(50):
        bench.residency.release("a")


def test_acquire_and_is_ready_do_not_wait_for_reads_or_copies(bench: Bench) -> None:
    bench.device.may_copy.clear()
    bench.residency.acquire("copying")
    eventually(lambda: "copying" in bench.device.places)
    bench.may_read.clear()
    started = time.perf_counter()
    for name in ("copying", "b", "c", "d"):
        bench.residency.acquire(name)
        assert not bench.residency.is_ready(name)
        assert bench.residency.failure(name) is None
        bench.residency.release(name)
    assert time.perf_counter() - started < 0.5
    bench.residency.release("copying")


def test_the_least_recently_used_unreferenced_version_makes_room(bench: Bench) -> None:
    bench.load("a", "b", "c", "d")
    bench.residency.acquire("a")  # the oldest, but held
    bench.residency.acquire("b")
    bench.residency.release("b")  # used again: c is now the oldest
    bench.load("e")
    assert ("evicted", "c", Tier.DEVICE) in bench.events
    assert sorted(bench.device.filled) == ["a", "b", "d", "e"]
    assert bench.residency.tier("c") is Tier.HOST
    bench.residency.release("a")


def test_a_version_on_the_host_is_not_read_again(bench: Bench) -> None:
    bench.load("a", "b", "c", "d", "e", "a")
    assert bench.reads["a"] == 1
    assert bench.device.copies["a"] == 2


def test_pinned_versions_stay_until_they_are_unloaded(bench: Bench) -> None:
    bench.residency.load("a", pin=True, timeout=5)
    bench.load("b", "c", "d", "e", "f")
    assert bench.residency.is_ready("a")
    assert [v.digest for v in bench.residency.snapshot() if v.pinned] == ["a"]
    bench.residency.unload("a", timeout=5)
    assert bench.residency.tier("a") is Tier.STORE


def test_a_small_load_passes_a_large_one_that_has_no_room_yet(bench: Bench) -> None:
    for name in ("a:32", "b:32"):
        bench.residency.acquire(name)
        bench.load(name)
    for name in ("big:64", "small:16"):
        bench.residency.acquire(name)
        eventually(lambda name=name: bench.reads[name] == 1)  # type: ignore[misc]
    bench.residency.release("a:32")
    eventually(lambda: bench.residency.is_ready("small:16"))
    assert not bench.residency.is_ready("big:64")
    assert bench.residency.failure("big:64") is None
    bench.residency.release("small:16")
    bench.residency.release("b:32")
    eventually(lambda: bench.residency.is_ready("big:64"))
    bench.residency.release("big:64")


def test_nobody_passes_a_load_that_has_waited_long_enough(hasty: Bench) -> None:
    for name in ("a:32", "b:32"):
        hasty.residency.acquire(name)
        hasty.load(name)
        assert hasty.residency.hold(name)
    for name in ("big:64", "small:16"):
        hasty.residency.acquire(name)
        eventually(lambda name=name: hasty.reads[name] == 1)  # type: ignore[misc]
    for name in ("a:32", "b:32"):
        time.sleep(0.02)
        assert not hasty.residency.is_ready("small:16"), "half of the room is for the large one"
        hasty.residency.drop(name)
        hasty.residency.release(name)
    eventually(lambda: hasty.device.copies["big:64"] > 0)
    hasty.residency.release("big:64")
    hasty.residency.release("small:16")


@pytest.mark.parametrize("patience", [0.0, 0.01])
def test_requests_for_several_versions_get_them_in_turn_where_one_set_fits(patience: float) -> None:
    """Without turns each would keep one version and take the other from the other for ever."""
    bench = Bench(patience=patience)
    sets = [("a:32", "b:32"), ("c:32", "d:32"), ("a:32", "d:32"), ("e:16", "f:32", "g:16")]
    for names in sets:
        bench.residency.acquire(*names)
    waiting = list(sets)

    def serve_one() -> bool:
        served = [names for names in waiting if bench.residency.hold(*names)]
        for names in served:
            bench.residency.drop(*names)
            bench.residency.release(*names)
            waiting.remove(names)
        return not waiting

    eventually(serve_one)
    finish(bench)


def test_versions_that_are_only_wanted_take_turns(hasty: Bench) -> None:
    names = [f"v{i}:32" for i in range(6)]  # two fit at a time
    for name in names:
        hasty.residency.acquire(name)
    seen: Counter[str] = Counter()
    eventually(lambda: not seen.update(hasty.residency._table.ready) and len(seen) == len(names))
    for name in names:
        hasty.residency.release(name)


def test_a_version_in_use_is_drained_for_a_load_that_waited_long_enough(hasty: Bench) -> None:
    hasty.residency.acquire("a:64")
    hasty.residency.acquire("a:64")
    hasty.load("a:64")
    assert hasty.residency.hold("a:64")
    hasty.residency.acquire("b:64")
    eventually(lambda: not hasty.residency.is_ready("a:64"))
    assert not hasty.residency.hold("a:64"), "nobody begins with it any more"
    assert hasty.residency.tier("a:64") is Tier.DEVICE, "who began goes on"
    hasty.residency.release("b:64")
    hasty.residency.check_integrity()
    hasty.residency.drop("a:64")
    hasty.residency.release("a:64")
    hasty.residency.release("a:64")


def test_a_version_is_not_drained_any_more_when_the_load_is_not_wanted(hasty: Bench) -> None:
    hasty.residency.acquire("a:64")
    hasty.load("a:64")
    assert hasty.residency.hold("a:64")
    hasty.residency.acquire("b:64")
    eventually(lambda: not hasty.residency.is_ready("a:64"))
    hasty.changes.clear()
    hasty.residency.release("b:64")
    eventually(lambda: hasty.changes == ["a:64"])
    assert hasty.residency.is_ready("a:64")
    hasty.residency.drop("a:64")
    hasty.residency.release("a:64")


def test_a_version_pinned_while_it_is_drained_stays(hasty: Bench) -> None:
    hasty.residency.acquire("a:64")
    hasty.load("a:64")
    assert hasty.residency.hold("a:64")
    hasty.residency.acquire("b:64")
    eventually(lambda: not hasty.residency.is_ready("a:64"))
    hasty.residency.load("a:64", pin=True, timeout=5)
    hasty.residency.drop("a:64")
    eventually(lambda: hasty.residency.is_ready("a:64"))
    hasty.residency.release("a:64")
    hasty.residency.release("b:64")


def test_unload_ends_a_load_that_waits_behind_others(bench: Bench) -> None:
    bench.residency.acquire("all:64")
    bench.load("all:64")
    for name in ("first:64", "behind:64"):
        bench.residency.acquire(name)
        eventually(lambda name=name: bench.reads[name] == 1)  # type: ignore[misc]
    bench.residency.release("behind:64")
    bench.residency.unload("behind:64", timeout=5)
    assert bench.residency.tier("behind:64") is Tier.STORE
    bench.residency.release("first:64")
    bench.residency.release("all:64")


def test_a_waiting_load_that_nobody_wants_any_more_leaves_the_line(bench: Bench) -> None:
    bench.residency.acquire("all:64")
    bench.load("all:64")
    for name in ("b", "c"):
        bench.residency.acquire(name)
        eventually(lambda name=name: bench.reads[name] == 1)  # type: ignore[misc]
    bench.residency.release("b")
    eventually(lambda: bench.residency.tier("b") is Tier.HOST)
    bench.residency.release("all:64")
    eventually(lambda: bench.residency.is_ready("c"))
    assert bench.device.copies["b"] == 0
    bench.residency.release("c")


def test_a_queued_load_that_nobody_wants_any_more_is_never_read(bench: Bench) -> None:
    bench.may_read.clear()
    for name in ("a", "b", "c"):
        bench.residency.acquire(name)
    bench.residency.release("c")  # two readers are busy with a and b
    bench.may_read.set()
    eventually(lambda: bench.residency.is_ready("b"))
    eventually(lambda: bench.residency.tier("c") is Tier.STORE)
    assert bench.reads["c"] == 0
    bench.residency.release("a")
    bench.residency.release("b")


def test_unload_waits_for_the_last_reference_and_then_frees(bench: Bench) -> None:
    bench.residency.acquire("a")
    bench.residency.acquire("a")
    bench.load("a")
    with ThreadPoolExecutor(1) as pool:
        unload = pool.submit(bench.residency.unload, "a", timeout=5)
        time.sleep(0.02)
        bench.residency.release("a")
        time.sleep(0.02)
        assert not unload.done()
        assert bench.residency.is_ready("a")
        bench.residency.release("a")
        unload.result()
    assert not bench.residency.is_ready("a")
    assert bench.device.places == {}
    assert bench.residency.host_bytes() == 0
    assert bench.residency.snapshot() == []
    assert ("evicted", "a", Tier.DEVICE) in bench.events
    assert ("evicted", "a", Tier.HOST) in bench.events


def test_unload_of_a_version_in_use_says_so_after_its_timeout(bench: Bench) -> None:
    bench.residency.acquire("a")
    bench.load("a")
    with pytest.raises(DeadlineExpired, match="1 running requests still use a"):
        bench.residency.unload("a", timeout=0.02)
    assert bench.residency.is_ready("a")
    bench.residency.release("a")
    bench.residency.unload("unknown", timeout=0.02)


def test_unload_succeeds_between_two_requests_of_a_busy_version(bench: Bench) -> None:
    """The release that ends the last reference frees, however soon the next request comes."""
    bench.residency.acquire("a")
    bench.load("a")
    with ThreadPoolExecutor(1) as pool:
        unload = pool.submit(bench.residency.unload, "a", timeout=5)
        time.sleep(0.02)
        bench.residency.release("a")
        bench.residency.acquire("a")
        assert not bench.residency.is_ready("a")
        unload.result()
    eventually(lambda: bench.residency.is_ready("a"))
    assert bench.device.copies["a"] == 2
    bench.residency.release("a")


def test_a_failed_load_is_answered_at_once_and_tried_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "FIRST_RETRY_SECONDS", 0.05)
    bench.read_error = AdapterCorrupt("rotten")
    bench.residency.acquire("a")
    eventually(lambda: bench.changes == ["a"])
    assert bench.residency.failure("a") is bench.read_error
    assert bench.residency.tier("a") is Tier.FAILED
    for _ in range(10):
        bench.residency.acquire("a")
    assert bench.residency.failure("a") is bench.read_error
    assert bench.reads["a"] == 1
    bench.read_error = None
    time.sleep(0.06)
    bench.residency.acquire("a")
    eventually(lambda: bench.residency.is_ready("a"))
    assert bench.residency.failure("a") is None
    for _ in range(12):
        bench.residency.release("a")


def test_failures_in_a_row_wait_twice_as_long_up_to_a_minute() -> None:
    failure = None
    waits = []
    for _ in range(9):
        failure = resident.Failure.after(failure, OSError())
        waits.append(round(failure.retry_at - time.monotonic()))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_load_raises_what_went_wrong_and_tries_again_when_asked_again(bench: Bench) -> None:
    bench.read_error = AdapterCorrupt("rotten")
    with pytest.raises(AdapterCorrupt, match="rotten"):
        bench.load("a")
    with pytest.raises(AdapterCorrupt):
        bench.load("a")
    assert bench.reads["a"] == 2
    bench.read_error = None
    bench.load("a")


def test_a_failed_copy_gives_its_place_back(bench: Bench) -> None:
    bench.device.copy_error = RuntimeError("device error")
    with pytest.raises(RuntimeError, match="device error"):
        bench.load("a")
    assert bench.device.places == {}
    bench.device.copy_error = None
    bench.load("a")


def test_a_version_that_never_fits_is_refused_not_waited_for(bench: Bench) -> None:
    with pytest.raises(AdapterIncompatible, match="can never load it: its rank is too large"):
        bench.load("a:128")
    assert bench.residency.host_bytes() == 0


def test_load_gives_up_after_its_timeout_but_the_load_goes_on(bench: Bench) -> None:
    bench.may_read.clear()
    bench.residency.acquire("a")
    with pytest.raises(DeadlineExpired, match=r"not loaded in 0\.02 s"):
        bench.residency.load("a", timeout=0.02)
    bench.may_read.set()
    eventually(lambda: bench.residency.is_ready("a"))
    bench.residency.release("a")


def test_release_without_a_reference_is_an_error(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no reference"):
        bench.residency.release("a")
    bench.load("a")
    with pytest.raises(ValueError, match="no reference"):
        bench.residency.release("a")


def test_host_copies_stay_within_their_bytes() -> None:
    bench = Bench(host_bytes=2 * COPY_BYTES)
    bench.load("a", "b", "c", "d", "e", "f")
    assert bench.residency.host_bytes() <= 2 * COPY_BYTES
    assert [e for e in bench.events if e[0] == "evicted" and e[2] is Tier.HOST]
    bench.load("a")
    assert bench.reads["a"] == 2
    finish(bench)


def test_a_version_kept_for_a_rollback_goes_last_from_the_host() -> None:
    bench = Bench(host_bytes=3 * COPY_BYTES)
    bench.load("left")
    bench.residency.keep("left", 60.0)
    bench.load("b", "c", "d", "e", "f", "g")
    assert bench.residency.host_bytes() <= 3 * COPY_BYTES
    bench.load("left")
    assert bench.reads["left"] == 1
    bench.residency.keep("left", 0.0)
    bench.load("b", "c", "d", "e", "f", "g", "left")
    assert bench.reads["left"] == 2, "no longer than asked for"
    finish(bench)


def test_waiting_loads_without_room_for_their_host_copies_still_get_their_turn() -> None:
    """Copies of waiting loads are dropped and read again, never in a circle."""
    bench = Bench(host_bytes=COPY_BYTES)
    bench.residency.acquire("all:64")
    bench.load("all:64")
    names = [f"v{i}:64" for i in range(5)]
    for name in names:
        bench.residency.acquire(name)
        eventually(lambda name=name: bench.reads[name] == 1)  # type: ignore[misc]
    time.sleep(0.05)
    assert sum(bench.reads.values()) == 6
    bench.residency.release("all:64")
    for name in names:  # in order: each waits for the one before
        eventually(lambda name=name: bench.residency.is_ready(name))  # type: ignore[misc]
        bench.residency.release(name)
    assert sum(bench.reads.values()) <= 6 + 5
    finish(bench)


def test_a_failing_observer_does_not_end_the_loads(bench: Bench) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("observer")

    bench.loaded = bench.evicted = fail  # type: ignore[method-assign]
    bench.load("a", "b", "c", "d", "e")


def test_close_ends_waiting_loads_and_all_threads() -> None:
    bench = Bench()
    bench.residency.acquire("all:64")
    bench.load("all:64")
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(bench.load, "b")
        eventually(lambda: bench.reads["b"] == 1)
        bench.residency.close()
        with pytest.raises(Unavailable):
            load.result()
    assert not [t for t in threading.enumerate() if t.name.startswith("adapter-")]
    bench.residency.close()


def test_many_threads_at_random_keep_the_tables_whole() -> None:
    bench = Bench(host_bytes=3 * COPY_BYTES)
    names = [f"v{i}:{16 * 2 ** (i % 3)}" for i in range(9)]

    def client(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            name = draw.choice(names)
            bench.residency.acquire(name)
            if draw.random() < 0.7:
                eventually(lambda name=name: bench.residency.is_ready(name))  # type: ignore[misc]
                assert name in bench.device.filled
                time.sleep(0.0002)
                assert name in bench.device.filled
            bench.residency.release(name)
            if draw.random() < 0.1:
                bench.residency.unload(name, timeout=5)
            bench.residency.check_integrity()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    finish(bench)
