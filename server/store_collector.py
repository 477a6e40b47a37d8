"""The thread that collects a store's garbage, on the one server that was told to."""

from __future__ import annotations

import logging
import threading

from polygraft.adapters.errors import PolygraftError
from polygraft.adapters.garbage import GarbageCollector

logger = logging.getLogger(__name__)


class StoreCollector:
    """A pass every `interval` seconds. What a pass did goes into the log."""

    def __init__(self, collector: GarbageCollector, interval: float) -> None:
        self._collector = collector
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-collector", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the pass that is running."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                report = self._collector.collect()
            except PolygraftError as error:
                logger.error("no garbage was collected: %s", error)
            except Exception:
                logger.exception("collecting garbage failed")
            else:
                logger.info(
                    "garbage: freed %d bytes in %d files, %d wait, %d old moves removed",
                    report.num_bytes, len(report.deleted), report.waiting,
                    report.pruned_generations,
                )  # fmt: skip
