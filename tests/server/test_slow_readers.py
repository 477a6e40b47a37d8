"""A client that does not read costs nobody else anything, and is cut off in the end."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_support.fake_engine import FakeEngine
from server_support.service import running_service, until_idle

from polygraft.client.failure import error_of
from polygraft.protos import generation_pb2 as pb

# Small windows, so that little is in flight when the client stops reading.
CLIENT_OPTIONS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
PATH = "/polygraft.v1.GenerationService/StreamGenerate"


def endless_engine() -> FakeEngine:
    return FakeEngine(
        token_ids=lambda request: itertools.repeat(0),
        tokens_per_step=200,
        context_length=1_000_000,
    )


async def read_all(call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_stalled_stream_is_cut_off_and_others_go_on(tmp_path: Path) -> None:
    engine = endless_engine()
    async with running_service(tmp_path / "store", engine=engine, stall_timeout=0.3) as service:
        async with grpc.aio.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
            call = channel.unary_stream(
                PATH,
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.StreamGenerateResponse.FromString,
            )(
                pb.GenerateRequest(
                    prompt="Hi",
                    stopping=pb.Stopping(max_output_tokens=900_000),
                    output=pb.OutputOptions(top_logprobs=0, token_ids=True),
                )
            )
            await call.read()
            started = time.monotonic()
            answer = await service.client.generate("Hi", max_output_tokens=100)
            assert answer.usage.output_tokens == 100
            await until_idle(service.server, 5.0)
            assert time.monotonic() - started < 5
            assert len(engine.requests) == 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call)
        error = caught.value
        found = error_of(error.code(), error.details() or "", error.trailing_metadata(), "here")
        assert found.code == "SLOW_READER"
