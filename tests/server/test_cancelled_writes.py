"""Clients that leave while a message is being written are no error: nothing is logged of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from pathlib import Path

import grpc
import pytest
from server_support.fake_engine import FakeEngine
from server_support.service import running_service, until_idle

from polygraft.protos import generation_pb2 as pb

PATH = "/polygraft.v1.GenerationService/StreamGenerate"
# Small windows, so that writes are pending when the client leaves.
CLIENT_OPTIONS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))


async def test_leaving_in_the_midst_of_a_write_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    draw = random.Random(0)
    engine = FakeEngine(
        token_ids=lambda request: itertools.repeat(0), tokens_per_step=50, context_length=1_000_000
    )
    request = pb.GenerateRequest(
        prompt="Hi",
        stopping=pb.Stopping(max_output_tokens=900_000),
        output=pb.OutputOptions(top_logprobs=0, token_ids=True),
    )
    async with running_service(tmp_path / "store", engine=engine, stall_timeout=0.1) as service:
        async with grpc.aio.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
            method = channel.unary_stream(
                PATH,
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.StreamGenerateResponse.FromString,
            )

            async def leave_soon() -> None:
                call = method(request, timeout=draw.choice([None, 0.05, 0.2]))
                try:
                    for _ in range(draw.randrange(4)):
                        await call.read()
                    await asyncio.sleep(draw.random() * 0.4)
                except grpc.aio.AioRpcError:
                    pass
                finally:
                    call.cancel()

            for _ in range(3):
                await asyncio.gather(*(leave_soon() for _ in range(20)))
        await until_idle(service.server, 5.0)
        text = "polygraft_requests_total"
        labels = {"method": "StreamGenerate", "code": "INTERNAL"}
        assert service.metrics().get_sample_value(text, labels) is None
    assert [record.getMessage() for record in caplog.records] == []
