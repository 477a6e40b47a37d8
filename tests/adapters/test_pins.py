"""Pins take half of the device at most, count against a namespace, and are seen before waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from adapter_support.fake_device import FakeDevice, weights_of_rank

from polygraft.adapters.errors import AdapterIncompatible, Overloaded
from polygraft.adapters.pins import Pins
from polygraft.adapters.pool import RowPool
from polygraft.adapters.residency import Residency

ROWS = 64
Make = Callable[..., Residency]


@pytest.fixture
def make() -> Iterator[Make]:
    """A residency of versions named "<name>:<rank>" over 64 rows."""
    made = []

    def make(**shares: float) -> Residency:
        device = FakeDevice(ROWS)
        residency = Residency(
            lambda digest: weights_of_rank(int(digest.partition(":")[2])),
            device,
            host_bytes=1 << 20,
            on_change=lambda digest: None,
            pins=Pins(device, **shares),
        )
        made.append(residency)
        return residency

    yield make
    for residency in made:
        residency.check_integrity()
        residency.close()


def pin(residency: Residency, digest: str, namespace: str = "") -> None:
    residency.load(digest, pin=True, namespace=namespace, timeout=5)


def test_half_of_the_rows_can_be_pinned_and_no_more(make: Make) -> None:
    residency = make()
    pin(residency, "a:16")
    pin(residency, "b:16")
    with pytest.raises(Overloaded, match="all namespaces together may pin 32 rank rows") as caught:
        pin(residency, "c:1")
    assert caught.value.code == "PIN_LIMIT"
    assert residency.stats().pinned.rank_rows == 32
    assert residency.is_ready("c:1"), "it is loaded all the same"
    assert {v.digest for v in residency.snapshot() if v.pinned} == {"a:16", "b:16"}


def test_an_unloaded_pin_makes_room_for_another(make: Make) -> None:
    residency = make()
    pin(residency, "a:32")
    pin(residency, "a:32")  # again is no second one
    residency.unload("a:32", timeout=5)
    pin(residency, "b:32")
    assert residency.stats().pinned.rank_rows == 32


def test_a_namespace_has_a_share_of_its_own(make: Make) -> None:
    residency = make(most_per_namespace=0.25)
    pin(residency, "a:16", "team")
    with pytest.raises(Overloaded, match="namespace 'team'"):
        pin(residency, "b:16", "team")
    pin(residency, "c:16", "other")


def test_what_has_no_room_beside_pins_is_refused_at_once(make: Make) -> None:
    residency = make()
    pin(residency, "a:32")
    residency.check_room({"b:32": 32})
    residency.check_room({"b:16": 16, "c:16": 16})
    residency.check_room({"a:32": 32, "b:32": 32})
    for ranks in ({"b:64": 64}, {"b:32": 32, "c:16": 16}):
        with pytest.raises(AdapterIncompatible, match="beside what is pinned") as caught:
            residency.check_room(ranks)
        assert caught.value.code == "NO_ADAPTER_ROWS"
    residency.unload("a:32", timeout=5)
    residency.check_room({"b:64": 64})


def test_versions_that_may_be_evicted_are_no_obstacle(make: Make) -> None:
    residency = make()
    for name in "abcd":
        residency.load(f"{name}:16", timeout=5)
    residency.check_room({"e:64": 64})
    pin(residency, "b:16")
    with pytest.raises(AdapterIncompatible):
        residency.check_room({"e:64": 64})


def test_blocks_that_stay_split_the_pool() -> None:
    pool = RowPool(64)
    row0s = [pool.allocate(16) for _ in range(4)]
    assert row0s == [0, 16, 32, 48]
    assert pool.fits_beside([], [64])
    assert pool.fits_beside([0], [32, 16])
    assert not pool.fits_beside([0, 32], [32])
    assert pool.fits_beside([0, 32], [16, 16])
    assert not pool.fits_beside([0, 32], [16, 16, 16])
    assert pool.num_free == 0, "nothing changed"
    pool.check_integrity()
