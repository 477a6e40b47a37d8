"""The one table from domain errors to gRPC statuses, with machine-readable details.

Every refusal carries google.rpc.ErrorInfo: the reason, the domain "polygraft" and, as metadata,
what the error knows (its class, item, file, found, allowed, request_id and extras). A wrong field
of a request adds BadRequest; overload, and only overload, adds RetryInfo and the pushback that
gRPC's own retry obeys. An error that is not in the table is a bug: INTERNAL, a generic text, the
request id.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInUse,
    AdapterInvalid,
    AliasConflict,
    DeadlineExpired,
    GateRefused,
    InvalidRequest,
    NonFinite,
    NotFound,
    Overloaded,
    PolygraftError,
    Unavailable,
    UploadConflict,
    UploadCorrupt,
    UploadOutOfRange,
)
from polygraft.server.outputs import SlowReader

DOMAIN = "polygraft"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

ERROR_TO_CODE: tuple[tuple[type[PolygraftError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (AdapterInvalid, grpc.StatusCode.FAILED_PRECONDITION),
    (AdapterIncompatible, grpc.StatusCode.FAILED_PRECONDITION),
    (AdapterInUse, grpc.StatusCode.FAILED_PRECONDITION),
    (GateRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (AliasConflict, grpc.StatusCode.ABORTED),
    (UploadConflict, grpc.StatusCode.ALREADY_EXISTS),
    (UploadOutOfRange, grpc.StatusCode.OUT_OF_RANGE),
    (UploadCorrupt, grpc.StatusCode.DATA_LOSS),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SlowReader, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExpired, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NonFinite, grpc.StatusCode.INTERNAL),
)

_TREE = PolygraftError.__module__

# A client takes 8 KiB of metadata. The message travels twice, once of the two as base64.
_MAX_MESSAGE = 2200
_MAX_VALUE = 200
_PLAIN_BYTES = frozenset(range(0x20, 0x7F)) - {ord("%")}
_RETRY_SECONDS = (0.05, 30.0)


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """How an RPC ends that did not succeed."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]


def status_of(error: Exception, request_id: str) -> RpcStatus:
    """The status that tells a caller about `error`."""
    code = code_of(error)
    if code is None or not isinstance(error, PolygraftError):
        message = f"internal error; the server's log has it under request {request_id}."
        return _rich(grpc.StatusCode.INTERNAL, message, [_info("INTERNAL", request_id)])
    details: list[Message] = [_info(error.code, request_id, error)]
    metadata: list[tuple[str, str | bytes]] = []
    if isinstance(error, InvalidRequest) and error.item:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.item, description=_cut(error.message, _MAX_VALUE)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        seconds = _retry_seconds(error)
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(round(seconds * 1000))
        details.append(info)
        metadata.append((PUSHBACK_KEY, str(round(seconds * 1000))))
    return _rich(code, str(error), details, metadata)


def code_of(error: Exception) -> grpc.StatusCode | None:
    """The code of a domain error; None for what is not in the table."""
    for kind, code in ERROR_TO_CODE:
        if isinstance(error, kind):
            return code
    return None


def _info(
    reason: str, request_id: str, error: PolygraftError | None = None
) -> error_details_pb2.ErrorInfo:
    metadata = {"request_id": request_id}
    if error is not None:
        known = {
            "item": error.item,
            "file": error.file,
            "found": error.found,
            "allowed": error.allowed,
        }
        metadata.update(error.metadata, error=_name_in_tree(error))
        metadata.update({key: str(value) for key, value in known.items() if value is not None})
    cut = {key: _cut(value, _MAX_VALUE) for key, value in metadata.items()}
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=cut)


def _name_in_tree(error: PolygraftError) -> str:
    """The class that clients know, from which they make the same exception again."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == _TREE)


def _retry_seconds(error: Overloaded) -> float:
    """With a fifth of jitter, so that those refused together do not come back together."""
    least, most = _RETRY_SECONDS
    return min(most, max(least, error.retry_after * random.uniform(0.8, 1.2)))


def _rich(
    code: grpc.StatusCode,
    message: str,
    details: list[Message],
    metadata: list[tuple[str, str | bytes]] | None = None,
) -> RpcStatus:
    message = _cut(message, _MAX_MESSAGE)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    trailers = [(DETAILS_KEY, status.SerializeToString()), *(metadata or [])]
    return RpcStatus(code, message, tuple(trailers))


def _cut(text: str, size: int) -> str:
    """At most `size` bytes as gRPC spells text on the wire (others than ASCII percent-encoded)."""
    if _wire_size(text) <= size:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _wire_size(text[:middle]) <= size - 3 else (low, middle - 1)
    return text[:low] + "..."


def _wire_size(text: str) -> int:
    return sum(1 if byte in _PLAIN_BYTES else 3 for byte in text.encode())
