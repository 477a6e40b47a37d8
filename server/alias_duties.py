"""What a server does about aliases beside answering: events are remembered, and the version that
an alias has just left stays on the host, so that a rollback need not read it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from polygraft.adapters.alias_records import AliasRecord
from polygraft.adapters.errors import AdapterIncompatible
from polygraft.adapters.events import AdapterEvent, EventFeed, EventKind
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.manifest import check_base
from polygraft.adapters.promotion import Promotions
from polygraft.adapters.registry import Registry
from polygraft.adapters.residency import Residency
from polygraft.adapters.resident import ResidencyObserver, Tier
from polygraft.adapters.scores import ScoreBook
from polygraft.adapters.stores.protocol import Store

Keep = Callable[[str, float], None]


class AliasDuties:
    """Told by the registry of every change, whichever server made it. `keep(digest, seconds)`."""

    def __init__(
        self, feed: EventFeed, registry: Registry, keep: Keep, *, rollback_keep: float
    ) -> None:
        self._feed = feed
        self._registry = registry
        self._keep = keep
        self._rollback_keep = rollback_keep

    def note(self, event: AdapterEvent) -> None:
        """A change; called from the thread that wrote or read it."""
        self._feed.add(event)
        if event.kind is EventKind.ALIAS_MOVED and event.alias is not None:
            for digest in self._left_by(event.alias):
                self._keep(digest, self._rollback_keep)

    def _left_by(self, record: AliasRecord) -> set[str]:
        history = self._registry.alias_history(record.adapter_name, record.alias)
        before = [old for old in history if old.generation < record.generation]
        left = {target.digest for target in before[-1].targets} if before else set()
        return left - {target.digest for target in record.targets}


class ResidencyEvents:
    """A ResidencyObserver that also feeds events; the rest is for `observer`."""

    def __init__(self, feed: EventFeed, observer: ResidencyObserver) -> None:
        self._feed = feed
        self._observer = observer

    def loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        """See ResidencyObserver."""
        self._observer.loaded(digest, tier, seconds)
        detail = f"in {seconds:.3f} s"
        self._feed.add(
            AdapterEvent(EventKind.LOADED, digest=digest, tier=tier.value, detail=detail)
        )

    def evicted(self, digest: str, tier: Tier) -> None:
        """See ResidencyObserver."""
        self._observer.evicted(digest, tier)
        self._feed.add(AdapterEvent(EventKind.EVICTED, digest=digest, tier=tier.value))


@dataclass(frozen=True, slots=True)
class AliasParts:
    """What the handlers of aliases ask."""

    feed: EventFeed
    scores: ScoreBook
    promotions: Promotions


def build_aliases(
    feed: EventFeed,
    registry: Registry,
    residency: Residency,
    store: Store,
    base: BaseGeometry,
    *,
    rollback_keep: float,
) -> AliasParts:
    """From here on the feed tells what changes in the registry."""
    scores = ScoreBook(store)
    promotions = Promotions(
        registry,
        scores,
        base_weights_sha256=base.fingerprint.weights_sha256,
        is_verified=partial(_is_verified, registry, base),
    )
    duties = AliasDuties(feed, registry, residency.keep, rollback_keep=rollback_keep)
    registry.observe(duties.note)
    return AliasParts(feed, scores, promotions)


def _is_verified(registry: Registry, base: BaseGeometry, digest: str) -> bool:
    try:
        return check_base(registry.manifest(digest), base)
    except AdapterIncompatible:
        return False
