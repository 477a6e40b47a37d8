"""The error table: what a domain error is on the wire, and what a client makes of it again."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from server_support.service import Service

from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterInUse,
    AdapterInvalid,
    AdapterNotFound,
    AdapterUnsupported,
    AliasConflict,
    DeadlineExpired,
    InvalidRequest,
    NonFinite,
    NotFound,
    Overloaded,
    PolygraftError,
    Unavailable,
    UploadConflict,
    UploadCorrupt,
    UploadNotFound,
    UploadOutOfRange,
)
from polygraft.protos import generation_pb2 as pb
from polygraft.server.grpc.status import status_of
from polygraft.server.outputs import SlowReader

Code = grpc.StatusCode

TABLE = [
    (InvalidRequest("bad.", item="prompt"), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (InvalidRequest("bad.", reason="EMPTY_PROMPT"), Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    (NotFound("none."), Code.NOT_FOUND, "NOT_FOUND"),
    (AdapterNotFound("none."), Code.NOT_FOUND, "ADAPTER_NOT_FOUND"),
    (AdapterInvalid("broken."), Code.FAILED_PRECONDITION, "ADAPTER_INVALID"),
    (AdapterUnsupported("DoRA."), Code.FAILED_PRECONDITION, "ADAPTER_UNSUPPORTED"),
    (AdapterCorrupt("bits."), Code.FAILED_PRECONDITION, "ADAPTER_CORRUPT"),
    (AdapterIncompatible("base."), Code.FAILED_PRECONDITION, "ADAPTER_INCOMPATIBLE"),
    (AdapterInUse("used."), Code.FAILED_PRECONDITION, "ADAPTER_IN_USE"),
    (AliasConflict("moved.", metadata={"generation": "3"}), Code.ABORTED, "ALIAS_CONFLICT"),
    (UploadNotFound("none."), Code.NOT_FOUND, "UPLOAD_NOT_FOUND"),
    (UploadConflict("other."), Code.ALREADY_EXISTS, "UPLOAD_CONFLICT"),
    (
        UploadOutOfRange("gap.", metadata={"offset": "7"}),
        Code.OUT_OF_RANGE,
        "OUT_OF_RANGE",
    ),
    (UploadCorrupt("sha256."), Code.DATA_LOSS, "UPLOAD_CORRUPT"),
    (Overloaded("full."), Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    (SlowReader("slow."), Code.RESOURCE_EXHAUSTED, "SLOW_READER"),
    (Unavailable("dead."), Code.UNAVAILABLE, "ENGINE_DEAD"),
    (Unavailable("going.", reason="DRAINING"), Code.UNAVAILABLE, "DRAINING"),
    (DeadlineExpired("late."), Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    (NonFinite("NaN."), Code.INTERNAL, "NON_FINITE"),
]


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found: dict[str, object] = {"trailers": trailers}
    for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
        message = getattr(error_details_pb2, kind)()
        if any(detail.Unpack(message) for detail in status.details):
            found[kind] = message
    return found


@pytest.mark.parametrize(("error", "code", "reason"), TABLE, ids=lambda value: str(value))
async def test_each_domain_error_has_its_status_and_comes_back_as_itself(
    service: Service, error: PolygraftError, code: grpc.StatusCode, reason: str
) -> None:
    service.engine.submit_error = error
    async with grpc.aio.insecure_channel(service.address) as channel:
        generate = channel.unary_unary(
            "/polygraft.v1.GenerationService/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(pb.GenerateRequest(prompt="Hi"))
    assert caught.value.code() is code
    found = details(caught.value)
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason, "polygraft")
    assert len(info.metadata["request_id"]) == 32
    assert set(error.metadata.items()) <= set(info.metadata.items())
    assert ("RetryInfo" in found) == isinstance(error, Overloaded)
    assert ("grpc-retry-pushback-ms" in found["trailers"]) == isinstance(error, Overloaded)  # type: ignore[operator]
    assert ("BadRequest" in found) == (error.item is not None)
    with pytest.raises(PolygraftError) as again:
        await service.client.generate("Hi")
    expected = type(error) if type(error) is not SlowReader else PolygraftError
    assert type(again.value) is expected
    assert again.value.code == reason


async def test_a_wrong_field_is_named_with_what_is_allowed(service: Service) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await service.client.generate("Hi", top_p=1.5)
    assert caught.value.metadata["item"] == "sampling.top_p"
    assert caught.value.metadata["found"] == "1.5"
    assert "0 to 1" in caught.value.metadata["allowed"]


async def test_an_overloaded_server_says_when_to_come_back(service: Service) -> None:
    service.engine.submit_error = Overloaded("full.")
    with pytest.raises(Overloaded) as caught:
        await service.client.generate("Hi")
    assert 0.79 <= caught.value.retry_after <= 1.21


@pytest.mark.parametrize("where", ["submit_error", "step_error"])
async def test_a_bug_is_internal_with_the_request_id_and_nothing_else(
    service: Service, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(service.engine, where, RuntimeError("secret: the prompt was 'Hi there'"))
    with pytest.raises(PolygraftError) as caught:
        await service.client.generate("Hi there")
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert caught.value.metadata["request_id"] in str(caught.value)
    assert caught.value.metadata["request_id"] in caplog.text
    assert (await service.server.generation.detokenize([0], skip_special_tokens=True)) == "!"


async def test_an_error_in_the_middle_of_a_stream_ends_it_with_its_status(
    service: Service,
) -> None:
    stream = service.client.stream("Hi")
    await anext(stream)
    service.engine.step_error = NonFinite("NaN.")
    with pytest.raises(NonFinite):
        async for _ in stream:
            pass
    assert stream.generation is None


@pytest.mark.parametrize("text", ["é" * 9000, "%" * 9000, "plain " * 9000])
def test_a_long_message_fits_into_the_metadata_a_client_takes(text: str) -> None:
    status = status_of(InvalidRequest(text, item="x" * 999, found=text), "0" * 32)
    size = sum(
        len(key) + 32 + (len(value) if isinstance(value, str) else -(-len(value) // 3) * 4)
        for key, value in status.metadata
    )
    spelled = sum(1 if 0x20 <= b < 0x7F and b != 0x25 else 3 for b in status.message.encode())
    assert size + spelled < 8192
    assert status.message.endswith("...")


def test_a_message_is_never_cut_within_a_character() -> None:
    for length in range(700, 760):
        status_of(InvalidRequest("a" * length + "😀" * 600), "0").message.encode()
