"""From the status of an RPC back to the exception that the server raised."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.rpc import error_details_pb2, status_pb2

from polygraft.adapters import errors
from polygraft.adapters.errors import (
    AdapterInvalid,
    AliasConflict,
    DeadlineExpired,
    InvalidRequest,
    NotFound,
    Overloaded,
    PolygraftError,
    Unavailable,
    UploadConflict,
    UploadCorrupt,
    UploadOutOfRange,
)

DETAILS_KEY = "grpc-status-details-bin"
# What grpc.aio says when a write fails before the status that ended the stream has been read.
_STATUS_LOST = "Internal error from Core"

# For what the runtime answers itself, and servers that name an error that is not known here.
_CODE_TO_ERROR: dict[grpc.StatusCode, type[PolygraftError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: AdapterInvalid,
    grpc.StatusCode.ABORTED: AliasConflict,
    grpc.StatusCode.ALREADY_EXISTS: UploadConflict,
    grpc.StatusCode.OUT_OF_RANGE: UploadOutOfRange,
    grpc.StatusCode.DATA_LOSS: UploadCorrupt,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExpired,
}


def error_of(
    code: grpc.StatusCode, text: str, trailers: Iterable[tuple[str, str | bytes]], address: str
) -> PolygraftError:
    """The exception for a status that is not OK. `error.metadata` has the request id."""
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return _rich_error(code, status_pb2.Status.FromString(value))
    return _plain_error(code, text, address)


def _rich_error(code: grpc.StatusCode, status: status_pb2.Status) -> PolygraftError:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    metadata = dict(info.metadata)
    named = getattr(errors, metadata.pop("error", ""), None)
    if isinstance(named, type) and issubclass(named, PolygraftError):
        kind = named
    else:
        kind = _CODE_TO_ERROR.get(code, PolygraftError)
    if retry.HasField("retry_delay"):
        metadata["retry_after"] = f"{retry.retry_delay.ToMilliseconds() / 1000:g}"
    error = kind(status.message, reason=info.reason, metadata=metadata)
    if isinstance(error, Overloaded) and "retry_after" in metadata:
        error.retry_after = float(metadata["retry_after"])
    return error


def _plain_error(code: grpc.StatusCode, text: str, address: str) -> PolygraftError:
    """What the runtime, not our server, has to say."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"no server answers at {address} ({text}).",
            reason="UNREACHABLE",
            hint="Start one with `polygraft serve`, or check the address.",
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExpired(
            f"{address} did not answer in time.", hint="Allow more with `timeout`."
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return InvalidRequest(f"the message is too large ({text}).", reason="MESSAGE_TOO_LARGE")
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(f"the call was cancelled ({text}).", reason="CANCELLED")
    if code is grpc.StatusCode.INTERNAL and text == _STATUS_LOST:
        return Unavailable(
            f"{address} ended the call while it was being sent, and gRPC lost its reason.",
            reason="STATUS_LOST",
        )
    kind = _CODE_TO_ERROR.get(code, PolygraftError)
    return kind(f"{address} answered {code.name}: {text}", reason=code.name)
