"""How many uploads may run and how many bytes may be staged, per namespace and in all."""

from __future__ import annotations

import threading
from collections import Counter

from polygraft.adapters.errors import Overloaded
from polygraft.adapters.limits import MIB, AdapterLimits

# An upload takes at least so much of the staging budget: that bounds their number, too.
LEAST_BYTES = MIB


class UploadQuota:
    """Counts of running uploads and staged bytes. Thread-safe; refuses with Overloaded."""

    def __init__(self, limits: AdapterLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()  # by namespace
        self._staged: Counter[str] = Counter()

    def start(self, namespace: str) -> None:
        """Counts a running upload; TOO_MANY_UPLOADS."""
        with self._lock:
            _check(
                self._running, namespace, 1,
                self._limits.max_uploads, self._limits.max_namespace_uploads,
                "uploads are running", "TOO_MANY_UPLOADS",
            )  # fmt: skip
            self._running[namespace] += 1

    def end(self, namespace: str) -> None:
        """The upload no longer runs; it may still be staged."""
        with self._lock:
            self._running[namespace] -= 1
            self._running += Counter()  # drops zeros

    def stage(self, namespace: str, size: int) -> None:
        """Counts bytes to be staged; STAGING_FULL."""
        size = max(size, LEAST_BYTES)
        with self._lock:
            _check(
                self._staged, namespace, size,
                self._limits.max_staged_bytes, self._limits.max_namespace_staged_bytes,
                "bytes of unfinished uploads are staged", "STAGING_FULL",
            )  # fmt: skip
            self._staged[namespace] += size

    def adopt(self, namespace: str, size: int) -> None:
        """Counts bytes that are staged already, whatever the limits are now."""
        with self._lock:
            self._staged[namespace] += max(size, LEAST_BYTES)

    def unstage(self, namespace: str, size: int) -> None:
        """The bytes are gone."""
        with self._lock:
            self._staged[namespace] -= max(size, LEAST_BYTES)
            self._staged += Counter()

    def staged_bytes(self) -> int:
        """Bytes reserved by unfinished uploads, each at least `LEAST_BYTES`."""
        with self._lock:
            return self._staged.total()

    def num_running(self) -> int:
        """Uploads that run now."""
        with self._lock:
            return self._running.total()


def _check(
    counts: Counter[str], namespace: str, more: int, most: int, share: int, what: str, reason: str
) -> None:
    for found, allowed, whose in (
        (counts.total(), most, "on this server"),
        (counts[namespace], share, f"in namespace {namespace!r}"),
    ):
        if found + more > allowed:
            raise Overloaded(
                f"{found} {what} {whose}, {allowed} are allowed at once.",
                reason=reason,
                item="files" if reason == "STAGING_FULL" else None,
                found=found + more,
                allowed=allowed,
                hint="Finish others first, or let them expire.",
            )
