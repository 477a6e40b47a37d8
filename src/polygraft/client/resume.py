"""When an upload that broke off is taken up again, and from where."""

from __future__ import annotations

from collections.abc import Mapping

from polygraft.adapters.errors import PolygraftError, Unavailable, UploadOutOfRange
from polygraft.client.retry import RetryPolicy
from polygraft.protos import adapters_pb2 as pb

# What sending the missing bytes again mends.
_MENDED = frozenset({"CHUNK_CORRUPT", "UPLOAD_INCOMPLETE", "UPLOAD_STALLED"})
_MOST_ASKED_AGAIN = 5
_SECONDS_BEFORE_ASKING_AGAIN = 0.05
_UNFINISHED = (pb.UPLOAD_STATE_RECEIVING, pb.UPLOAD_STATE_VALIDATING)


class Resumption:
    """One upload's attempts. They are counted anew whenever it has got further."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._attempt = 0
        self._furthest = -1
        self._asked_again = 0

    def reached(self, persisted: Mapping[str, int]) -> None:
        """The server has answered, and has so many bytes of each file."""
        # Why: it is there; when it is away later it restarts, and loads its model first.
        if self._furthest < 0:
            self._policy = self._policy.patient()
        total = sum(persisted.values())
        if total > self._furthest:
            self._furthest, self._attempt = total, 0

    def wait_after(self, error: PolygraftError) -> float | None:
        """Seconds to wait before asking how far it came; None: it cannot go on."""
        if error.code == "STATUS_LOST" and self._asked_again < _MOST_ASKED_AGAIN:
            # Why whatever the policy is: the server has answered, and to ask again is to hear it.
            self._asked_again += 1
            return _SECONDS_BEFORE_ASKING_AGAIN
        self._attempt += 1
        if isinstance(error, UploadOutOfRange) or error.code in _MENDED:
            error = Unavailable(str(error))
        return self._policy.wait_after(self._attempt, error)


def persisted_of(upload: pb.Upload) -> dict[str, int]:
    """Bytes of each file that need not be sent.

    None of an upload that is over: it begins anew, or its content is published, which the server
    says at the header.
    """
    if upload.state not in _UNFINISHED:
        return {}
    return {file.name: file.persisted_size_bytes for file in upload.files}
