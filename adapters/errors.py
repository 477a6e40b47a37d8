"""The domain errors of Polygraft, one tree. `server.grpc.status` maps each to a gRPC status.

PolygraftError
├── InvalidRequest        a field of the request is wrong; nothing was queued or written
├── NotFound
│   ├── AdapterNotFound   no such name, version number, alias or digest
│   └── UploadNotFound    no such upload, or none any more
├── AdapterInvalid        the files are broken or use a feature that is not supported
│   ├── AdapterUnsupported
│   └── AdapterCorrupt    stored bytes no longer match their digest
├── AdapterIncompatible   right files, other base: fingerprint, shape, rank over the limit
├── AdapterInUse          the version is referenced by an alias or by running requests
├── AliasConflict         the alias moved since it was read
├── GateRefused           the scores do not allow the version in; `metadata` has each check
├── ModelRefused          the base model cannot be served exactly
├── UploadConflict        another header has this upload id
├── UploadOutOfRange      a chunk lies behind what has come; the metadata says where to go on
├── UploadCorrupt         declared size, sha256 or crc32c does not match the bytes received
├── Overloaded            a queue or the adapter pool is full; retrying later may succeed
├── Unavailable           starting, draining, or the engine is dead
├── DeadlineExpired       the caller's deadline passed
└── NonFinite             the model produced NaN or Inf for this sequence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class PolygraftError(Exception):
    """Base of every error that a caller is told about.

    `message` is one sentence that says what was wrong, where, the limit and what to do.
    `item` names the field, tensor or config key; `file` the file it was read from; `found` and
    `allowed` are the offending value and the limit as text; `hint` is the way out; `metadata`
    carries machine-readable extras (for example the current generation of an alias).
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        file: str | None = None,
        item: str | None = None,
        found: object = None,
        allowed: object = None,
        hint: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = reason or self.reason
        self.file = file
        self.item = item
        self.found = found
        self.allowed = allowed
        self.hint = hint
        self.metadata = dict(metadata or {})
        self.problems: tuple[PolygraftError, ...] = ()  # of one that tells several

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.item) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} {self.hint}" if self.hint else text


class InvalidRequest(PolygraftError):
    """A request field is out of range, missing or contradictory. `item` names the field."""

    reason = "INVALID_REQUEST"


class NotFound(PolygraftError):
    """Something named in the request does not exist."""

    reason = "NOT_FOUND"


class AdapterNotFound(NotFound):
    """No adapter has this name, number, alias or digest."""

    reason = "ADAPTER_NOT_FOUND"


class UploadNotFound(NotFound):
    """No upload has this id: none began, its server forgot it, or it was swept."""

    reason = "UPLOAD_NOT_FOUND"


class AdapterInvalid(PolygraftError):
    """The adapter's files are broken; do not retry until they are fixed."""

    reason = "ADAPTER_INVALID"


class AdapterUnsupported(AdapterInvalid):
    """The files use a feature that the server would not apply exactly, so they are refused."""

    reason = "ADAPTER_UNSUPPORTED"


class AdapterCorrupt(AdapterInvalid):
    """Stored bytes no longer match the digest they were published under."""

    reason = "ADAPTER_CORRUPT"


class AdapterIncompatible(PolygraftError):
    """The adapter was made for another base, or exceeds a limit of this server."""

    reason = "ADAPTER_INCOMPATIBLE"


class AdapterInUse(PolygraftError):
    """An alias or a running request still refers to the version."""

    reason = "ADAPTER_IN_USE"


class AliasConflict(PolygraftError):
    """The alias is not at the expected generation; `metadata["generation"]` is the current one."""

    reason = "ALIAS_CONFLICT"


class GateRefused(PolygraftError):
    """A version was not let in; `metadata` has every check as "name: found | needed | passed"."""

    reason = "GATE_REFUSED"


class ModelRefused(PolygraftError):
    """The base model cannot be served exactly; the message says why and what would work."""

    reason = "MODEL_REFUSED"


class UploadConflict(PolygraftError):
    """An upload with this id is under way whose header says something else."""

    reason = "UPLOAD_CONFLICT"


class UploadOutOfRange(PolygraftError):
    """A chunk starts behind the bytes that have come; `metadata["offset"]` is where to go on."""

    reason = "OUT_OF_RANGE"


class UploadCorrupt(PolygraftError):
    """The bytes received do not have the declared size, sha256 or crc32c; nothing was published."""

    reason = "UPLOAD_CORRUPT"


class Overloaded(PolygraftError):
    """A bounded queue or the adapter pool is full. `retry_after` seconds is an estimate."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after = 1.0 if retry_after is None else retry_after


class Unavailable(PolygraftError):
    """The server is starting, draining, or its engine has died."""

    reason = "ENGINE_DEAD"


class DeadlineExpired(PolygraftError):
    """The caller's deadline passed before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class NonFinite(PolygraftError):
    """The logits of one sequence contained NaN or Inf; only that sequence was ended."""

    reason = "NON_FINITE"


MAX_PROBLEMS_SHOWN = 20


def raise_all(problems: Sequence[AdapterInvalid | AdapterIncompatible]) -> None:
    """Raises one error that tells all `problems`; does nothing when there are none.

    One problem is raised as it is. Several keep the class and the fields of the first, unless
    their classes differ: then AdapterInvalid, because something is broken besides the base.
    """
    if len(problems) <= 1:
        for problem in problems:
            raise problem
        return
    first = problems[0]
    lines = [str(problem) for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > len(lines):
        lines.append(f"and {len(problems) - len(lines)} more")
    kinds = {type(problem) for problem in problems}
    told = (kinds.pop() if len(kinds) == 1 else AdapterInvalid)(
        f"{len(problems)} problems. " + " | ".join(lines),
        reason=first.code if all(p.code == first.code for p in problems) else None,
        found=first.found,
        allowed=first.allowed,
        metadata={"problems": str(len(problems))},
    )
    told.problems = tuple(problems)
    raise told
