"""Processes that share a store: what one writes the others take in, at the cost of what is new."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from adapter_support.press import Press

from polygraft.adapters import changes
from polygraft.adapters.changes import SharedStore
from polygraft.adapters.errors import AdapterNotFound, Unavailable
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.protocol import Store


class Watched:
    """A store that counts what is asked of it, and is out of reach when told so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.listed: list[str] = []
        self.calls: Counter[str] = Counter()
        self.unreachable: str | None = None  # part of the keys that cannot be reached

    def __getattr__(self, name: str) -> Any:
        def call(key: Any, *arguments: Any, **options: Any) -> Any:
            if self.unreachable is not None and self.unreachable in str(key):
                raise Unavailable("the store does not answer.")
            self.calls[name] += 1
            if name == "list":
                self.listed.append(key)
            return getattr(self._store, name)(key, *arguments, **options)

        return call


@pytest.fixture
def watched(store: Store) -> Watched:
    return Watched(store)


def test_what_one_writes_the_other_follows(store: Store, press: Press) -> None:
    one, two = Registry(store), Registry(store)
    for content in (1, 2, 3):
        press.publish(one, "team/sum", content)
    with pytest.raises(AdapterNotFound):
        two.resolve("team/sum")
    two.follow()
    assert two.versions("team/sum") == one.versions("team/sum")
    one.move_alias("team/sum", "live", 2)
    one.move_alias("team/sum", "canary", 3)
    one.delete_version("team/sum", 1)
    two.follow()
    assert two.resolve("team/sum").number == 2
    assert two.aliases("team/sum") == one.aliases("team/sum")
    assert two.versions("team/sum") == one.versions("team/sum")
    two.move_alias("team/sum", "live", 3)
    one.follow()
    assert one.alias_history("team/sum", "live") == two.alias_history("team/sum", "live")
    one.delete_adapter("team/sum")
    two.follow()
    assert two.names() == []


def test_following_lists_only_what_is_new(store: Store, watched: Watched, press: Press) -> None:
    one = Registry(store)
    for content, name in enumerate(("a", "b", "c"), 1):
        press.publish(one, name, content)
    two = Registry(watched)
    watched.listed.clear()
    watched.calls.clear()
    two.follow()
    assert (watched.listed, watched.calls["get"]) == (["changes/"], 0)
    one.move_alias("b", "live", 1, expected_generation=1)  # it points there: nothing is written
    two.follow()
    assert watched.listed == ["changes/", "changes/"]
    press.publish(one, "b", 4)
    one.move_alias("b", "live", 2)
    two.follow()
    assert watched.listed[2:] == ["changes/", "versions/_/b/", "aliases/_/b/live/"]


def test_own_changes_are_not_read_again(watched: Watched, press: Press) -> None:
    registry = Registry(watched)
    press.publish(registry, "a", 1)
    watched.listed.clear()
    registry.follow()
    assert watched.listed == ["changes/"]


def test_who_is_too_far_behind_reads_the_logs(
    store: Store, press: Press, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "KEPT", 3)
    one, two = Registry(store), Registry(store)
    for content in range(1, 8):
        press.publish(one, "a", content)
    assert len(list(store.list("changes/"))) == 3
    two.follow()
    assert two.versions("a") == one.versions("a")


def test_a_change_that_could_not_be_read_is_read_later(
    store: Store, watched: Watched, press: Press
) -> None:
    one, two = Registry(store), Registry(watched)
    press.publish(one, "a", 1)
    watched.unreachable = "versions/"
    with pytest.raises(Unavailable):
        two.follow()
    watched.unreachable = "changes/"
    with pytest.raises(Unavailable):
        two.follow()
    watched.unreachable = None
    two.follow()
    assert two.resolve("a") == one.resolve("a")


def test_a_publish_whose_announcement_fails_is_a_publish(
    store: Store, watched: Watched, press: Press, caplog: pytest.LogCaptureFixture
) -> None:
    two, one = Registry(store), Registry(watched)
    watched.unreachable = "changes/"
    record = press.publish(one, "a", 1)
    assert "others learn later" in caplog.text
    two.refresh()
    assert two.resolve("a") == record


def test_refreshing_reads_only_names_whose_keys_have_changed(
    store: Store, watched: Watched, press: Press
) -> None:
    one = Registry(store)
    for content, name in enumerate(("a", "b", "c"), 1):
        press.publish(one, name, content)
    two = Registry(watched)
    press.publish(one, "b", 4)
    watched.calls.clear()
    two.refresh()
    assert watched.calls["get"] == 2  # the two records of "b"
    assert two.versions("b") == one.versions("b")


def test_many_writers_share_one_feed(store: Store) -> None:
    writers = [SharedStore(store) for _ in range(3)]
    reader = SharedStore(store)
    reader.skip()
    for turn in range(4):
        for index, writer in enumerate(writers):
            writer.announce(f"aliases/_/a/live/{turn}{index}")
    told = reader.poll()
    assert told == [f"aliases/_/a/live/{turn}{index}" for turn in range(4) for index in range(3)]
    assert reader.poll() == []
    assert writers[0].poll() == [key for key in told if not key.endswith("0")]


def test_manifests_are_read_when_they_are_needed(
    store: Store, watched: Watched, press: Press
) -> None:
    one = Registry(store)
    for content in (1, 2, 3):
        press.publish(one, "a", content)
    watched.calls.clear()
    two = Registry(watched)
    assert watched.calls["get"] == 4  # three versions and one alias
    assert two.num_versions("a") == 3
    assert watched.calls["get"] == 4
    assert two.resolve("a").manifest == one.resolve("a").manifest
    assert watched.calls["get"] == 5
