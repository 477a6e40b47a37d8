"""What comes over the wire before it is a request: bytes, methods, health, reflection."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from server_support.service import Service

from polygraft.adapters.errors import PolygraftError
from polygraft.client.failure import error_of
from polygraft.protos import adapters_pb2, generation_pb2, inputs_pb2, scoring_pb2

SERVICES = [
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"],
]
PATHS = [
    f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
]
UNDECODABLE = [b"\xff" * 20, b"\x0a\x7fabc"]  # no such wire type; truncated
PROMPT_TAG = b"\x1a"  # field 3 of GenerateRequest, text
SAMPLING_TAG = b"\x3a"  # field 7 of GenerateRequest, a message
ITEMS_TAG = b"\x1a"  # field 3 of ScoreRequest, messages
BAD_TEXT = [b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80"]  # not UTF-8, lone surrogate, overlong NUL
UNKNOWN_FIELD = b"\xfa\x07\x01x"  # field 127, text


async def call(channel: Any, path: str, data: bytes) -> None:
    """A call of raw bytes, whatever the method's kind. The channel is untyped, as the bytes are."""
    name = path.rpartition("/")[2]
    if name == "UploadAdapter":
        await channel.stream_unary(path)(iter([data]))
    elif name == "StreamGenerate":
        async for _ in channel.unary_stream(path)(data):
            pass
    else:
        await channel.unary_unary(path)(data)


async def refusal(service: Service, path: str, data: bytes) -> PolygraftError:
    """The error that a call of raw bytes gets."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, path, data)
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return error_of(error.code(), error.details() or "", error.trailing_metadata(), "here")


@pytest.mark.parametrize("path", PATHS)
async def test_bytes_that_do_not_decode_are_an_invalid_argument(
    service: Service, path: str
) -> None:
    for data in UNDECODABLE:
        assert (await refusal(service, path, data)).code == "UNDECODABLE_MESSAGE"


@pytest.mark.parametrize("text", BAD_TEXT)
async def test_text_that_is_not_utf8_is_an_invalid_argument(service: Service, text: bytes) -> None:
    data = PROMPT_TAG + bytes([len(text)]) + text
    path = "/polygraft.v1.GenerationService/Generate"
    assert (await refusal(service, path, data)).code == "UNDECODABLE_MESSAGE"


@pytest.mark.parametrize("path", PATHS)
async def test_a_field_that_this_version_does_not_know_is_refused_not_ignored(
    service: Service, path: str
) -> None:
    assert (await refusal(service, path, UNKNOWN_FIELD)).code == "UNKNOWN_FIELD"


async def test_an_unknown_field_deep_inside_is_refused_too(service: Service) -> None:
    data = generation_pb2.GenerateRequest(prompt="Hi").SerializeToString()
    sampling = SAMPLING_TAG + bytes([len(UNKNOWN_FIELD)]) + UNKNOWN_FIELD
    path = "/polygraft.v1.GenerationService/StreamGenerate"
    assert (await refusal(service, path, data + sampling)).code == "UNKNOWN_FIELD"


GENERATE = "/polygraft.v1.GenerationService/Generate"


def joined(*messages: Message) -> bytes:
    """What an encoder that allows it would send: the fields of all messages in one."""
    return b"".join(message.SerializeToString() for message in messages)


def nested(tag: bytes, *messages: Message) -> bytes:
    """The same as a part of a larger message, shorter than 128 bytes."""
    content = joined(*messages)
    return tag + bytes([len(content)]) + content


@pytest.mark.parametrize(
    ("path", "data", "item"),
    [
        (
            "Generate",
            joined(
                generation_pb2.GenerateRequest(prompt="Hi"),
                generation_pb2.GenerateRequest(token_ids=inputs_pb2.TokenIds(values=[1])),
            ),
            "input",
        ),
        (
            "StreamGenerate",
            joined(
                generation_pb2.GenerateRequest(
                    prompt="Hi", constraint=generation_pb2.Constraint(regex="a")
                ),
                generation_pb2.GenerateRequest(constraint=generation_pb2.Constraint(grammar="b")),
            ),
            "constraint.kind",
        ),
        (
            "Score",
            nested(
                ITEMS_TAG,
                scoring_pb2.ScoreItem(prompt="a"),
                scoring_pb2.ScoreItem(variables=inputs_pb2.Variables()),
            ),
            "items[0].input",
        ),
    ],
)
async def test_two_members_of_one_choice_are_refused(
    service: Service, path: str, data: bytes, item: str
) -> None:
    error = await refusal(service, f"/polygraft.v1.GenerationService/{path}", data)
    assert (error.code, error.metadata["item"]) == ("CONFLICTING_FIELDS", item)


async def test_an_unusual_but_correct_encoding_is_taken(service: Service) -> None:
    """Unpacked numbers, a field given twice, default values written out."""
    data = b"\x22\x04\x08\x01\x08\x02" + b"\x0a\x00" + b"\x58\x00"
    expected = generation_pb2.GenerateRequest(token_ids=inputs_pb2.TokenIds(values=[1, 2]))
    assert generation_pb2.GenerateRequest.FromString(data) == expected
    async with grpc.aio.insecure_channel(service.address) as channel:
        await call(channel, GENERATE, data)
    assert service.engine.requests[-1].prompt_token_ids == (1, 2)


async def test_a_choice_within_thousands_of_oddly_written_fields_costs_little(
    service: Service,
) -> None:
    data = (
        (SAMPLING_TAG + b"\x00") * 500_000 + PROMPT_TAG + b"\x02Hi"
    )  # empty sampling, again and again
    assert (await refusal(service, GENERATE, data)).code == "UNDECODABLE_MESSAGE"


async def test_random_bytes_never_break_the_server(service: Service) -> None:
    draw = random.Random(0)
    async with grpc.aio.insecure_channel(service.address) as channel:
        for _ in range(300):
            path, data = draw.choice(PATHS), draw.randbytes(draw.randrange(40))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(channel, path, data)
    codes = {
        sample.labels["code"]
        for metric in service.metrics().collect()
        for sample in metric.samples
        if sample.name == "polygraft_requests_total"
    }
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert (await service.client.generate("Hi")).text == service.engine.reply


async def test_health_garbage_is_an_invalid_argument_too(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "/grpc.health.v1.Health/Check", b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "/polygraft.v1.GenerationService/Nothing", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused(service: Service) -> None:
    request = generation_pb2.GenerateRequest(prompt="x" * (5 << 20))
    async with grpc.aio.insecure_channel(service.address) as channel:
        path = "/polygraft.v1.GenerationService/Generate"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, path, request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int((await check(health_pb2.HealthCheckRequest(service=name))).status)


async def test_health_speaks_for_the_server_and_for_each_service(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        for name in ("", "polygraft.v1.GenerationService", "polygraft.v1.AdapterService"):
            assert await health_of(channel, name) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "polygraft.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(service=""))
        states = aiter(watch)
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING
        await service.server.listener.set_serving(False)
        assert (await anext(states)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_reflection_lists_the_services(service: Service) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with grpc.aio.insecure_channel(service.address) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(ask())
        answer = [message async for message in call]
    names = {found.name for found in answer[0].list_services_response.service}
    assert {"polygraft.v1.GenerationService", "polygraft.v1.AdapterService"} <= names
    assert "grpc.health.v1.Health" in names
