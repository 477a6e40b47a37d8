"""What a registry does with odd names, damaged records and reasons that are too long."""

from __future__ import annotations

import pytest
from adapter_support.press import Press

from polygraft.adapters.errors import AdapterCorrupt, AdapterNotFound, InvalidRequest
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.protocol import Store


def test_a_deleted_version_of_a_name_with_json_in_it_stays_deleted(
    store: Store, press: Press
) -> None:
    registry = Registry(store)
    for content in (1, 2):
        press.publish(registry, "foo.json", content)
    registry.move_alias("foo.json", "live", 2)
    registry.delete_version("foo.json", 1)
    assert [record.number for record in Registry(store).versions("foo.json")] == [2]


def test_a_damaged_log_record_costs_its_own_version_or_alias_only(
    store: Store, press: Press
) -> None:
    registry = Registry(store)
    for content in (1, 2):
        press.publish(registry, "a", content)
    press.publish(registry, "b", 3)
    for key in ("versions/_/a/0000000001.json", "aliases/_/b/live/0000000001.json"):
        store.delete(key)
        assert store.create(key, b"not JSON")
    fresh = Registry(store)
    assert fresh.resolve("a@2").number == 2
    assert fresh.resolve("b@1").number == 1
    with pytest.raises(AdapterCorrupt):
        fresh.version("a", 1)
    with pytest.raises(AdapterNotFound):
        fresh.resolve("b")


def test_an_empty_name_is_answered_like_any_unknown_one(store: Store, press: Press) -> None:
    registry = Registry(store)
    press.publish(registry, "a", 1)
    with pytest.raises(AdapterNotFound):
        registry.versions("")


def test_a_reason_is_bounded(store: Store, press: Press) -> None:
    registry = Registry(store)
    press.publish(registry, "a", 1)
    with pytest.raises(InvalidRequest, match="1024"):
        registry.move_alias("a", "live", 1, reason="r" * 2000)
