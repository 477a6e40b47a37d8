"""The thread that takes in what other servers write to the store this one shares with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from polygraft.adapters.errors import PolygraftError
from polygraft.adapters.registry import Registry

logger = logging.getLogger(__name__)


class StoreFollower:
    """Follows the store every `poll_seconds`, and compares all logs every `refresh_seconds`.

    Why compare: a server that dies between a record and its announcement tells nobody.
    `on_reach` is told whether the store answered, after each time. While it does not, everything
    that was read before goes on being served.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        poll_seconds: float,
        refresh_seconds: float,
        on_reach: Callable[[bool], None],
    ) -> None:
        self._registry = registry
        self._poll_seconds = poll_seconds
        self._refresh_seconds = refresh_seconds
        self._on_reach = on_reach
        self._stopped = threading.Event()
        self._is_reached = True
        self._thread = threading.Thread(target=self._run, name="store-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after what it is doing now."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        refresh_at = time.monotonic() + self._refresh_seconds
        while not self._stopped.wait(self._poll_seconds):
            is_due = time.monotonic() >= refresh_at
            try:
                self._registry.refresh() if is_due else self._registry.follow()
            except PolygraftError as error:
                self._tell(False, str(error))
            except Exception:
                # Why go on: a record nobody expected must not end the following of all others.
                logger.exception("following the store failed")
            else:
                self._tell(True)
                if is_due:
                    refresh_at = time.monotonic() + self._refresh_seconds

    def _tell(self, is_reached: bool, why: str = "") -> None:
        self._on_reach(is_reached)
        if is_reached == self._is_reached:
            return
        self._is_reached = is_reached
        if is_reached:
            logger.warning("the store answers again")
        else:
            logger.error("what was read from the store is served on: %s", why)
