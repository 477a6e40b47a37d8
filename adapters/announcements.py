"""Telling others what the loader threads do, without letting them break those threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from polygraft.adapters.resident import ResidencyObserver, Tier

logger = logging.getLogger(__name__)


class Announcements:
    """What an observer is told; nothing where there is none."""

    def __init__(self, observer: ResidencyObserver | None) -> None:
        self._observer = observer

    def loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        """A version reached a tier."""
        if self._observer is not None:
            call_safely(self._observer.loaded, digest, tier, seconds)

    def evicted(self, digests: Iterable[str], tier: Tier) -> None:
        """Versions left a tier."""
        if self._observer is not None:
            for digest in digests:
                call_safely(self._observer.evicted, digest, tier)


def call_safely(callback: Callable[..., None], *arguments: object) -> None:
    """Why swallow: a failing observer must not end the thread that all loads depend on."""
    try:
        callback(*arguments)
    except Exception:
        logger.exception("%r failed", callback)
