"""The feed of events: order, cursors, and what is said when some are forgotten."""

from __future__ import annotations

import pytest

from polygraft.adapters.events import AdapterEvent, EventBatch, EventFeed, EventKind

PUBLISHED, LOADED = EventKind.PUBLISHED, EventKind.LOADED


def add(feed: EventFeed, number: int, kind: EventKind = PUBLISHED) -> None:
    feed.add(AdapterEvent(kind, "sum", number))


def numbers(feed: EventFeed, cursor: str, *, residency: bool = False) -> list[int]:
    return [event.number for event, _ in feed.after(cursor, residency=residency).events]


def test_a_cursor_goes_on_behind_what_was_read() -> None:
    feed = EventFeed()
    start = feed.cursor()
    for number in (1, 2, 3):
        add(feed, number)
    batch = feed.after(start)
    assert not batch.missed
    assert [event.number for event, _ in batch.events] == [1, 2, 3]
    assert numbers(feed, batch.events[0][1]) == [2, 3]
    assert numbers(feed, feed.cursor()) == []


def test_who_falls_behind_is_told() -> None:
    feed = EventFeed(max_events=3)
    start = feed.cursor()
    for number in range(1, 5):
        add(feed, number)
    batch = feed.after(start)
    assert batch.missed
    assert [event.number for event, _ in batch.events] == [2, 3, 4]
    assert feed.after(batch.start) == EventBatch(batch.events, batch.start, missed=False)
    assert not feed.after(batch.events[-1][1]).missed


@pytest.mark.parametrize("cursor", ["nonsense", "", ".1", "other.1", "{id}.99", "{id}.-1", "{id}."])
def test_a_cursor_of_another_server_is_told_as_missed(cursor: str) -> None:
    feed = EventFeed()
    add(feed, 1)
    batch = feed.after(cursor.replace("{id}", feed.cursor().partition(".")[0]))
    assert batch.missed
    assert [event.number for event, _ in batch.events] == [1]


def test_loads_do_not_push_out_what_changed() -> None:
    feed = EventFeed(max_events=2)
    start = feed.cursor()
    add(feed, 1)
    for number in range(10, 20):
        add(feed, number, LOADED)
    assert numbers(feed, start) == [1]
    assert not feed.after(start).missed
    assert feed.after(start, residency=True).missed
    assert numbers(feed, start, residency=True) == [1, 18, 19]


def test_listeners_are_woken_until_they_leave() -> None:
    feed, woken = EventFeed(), []
    with feed.listening(lambda: woken.append(1)):
        add(feed, 1)
        add(feed, 2)
    add(feed, 3)
    assert len(woken) == 2
