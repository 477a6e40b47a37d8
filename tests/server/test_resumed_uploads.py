"""Uploads over connections that break and servers that restart, with the real clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from adapter_support.directories import write_adapter
from server_support.service import Service, running_service, service_in_thread, until_idle

from polygraft.adapters.chunks import CHUNK_BYTES
from polygraft.adapters.errors import UploadCorrupt
from polygraft.adapters.staged_file import STRETCH_BYTES
from polygraft.adapters.upload import Upload as ServerUpload
from polygraft.client import (
    AsyncClient,
    Client,
    PolygraftError,
    RetryPolicy,
    Unavailable,
    UploadConflict,
    UploadNotFound,
    UploadOutOfRange,
)
from polygraft.client.failure import error_of
from polygraft.client.resume import Resumption
from polygraft.client.retry import NO_RETRY
from polygraft.client.upload import UploadSource
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.upload import UploadReceiver

QUICK = RetryPolicy(attempts=4, first_wait=0.01, longest_wait=0.05)
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter with five MiB beside it, on which a test can count chunks."""
    directory = write_adapter(tmp_path / "a")
    (directory / "probes.safetensors").unlink(missing_ok=True)
    return directory


def big(folder: Path, size: int = 900_000) -> dict[str, Path]:
    """The files, with a README of the largest size that is allowed."""
    (folder / "README.md").write_bytes(bytes(i % 253 for i in range(size)))
    return {path.name: path for path in folder.iterdir()}


class Meter:
    """Counts the bytes that a server takes, and breaks its uploads at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.received = 0
        self.chunks = 0
        self.fail_at: set[int] = set()
        self.spoil_at: set[int] = set()
        write = ServerUpload.write

        def counted(upload: ServerUpload, index: int, at: int, data: bytes, crc: int) -> bool:
            self.chunks += 1
            if self.chunks in self.spoil_at:
                crc ^= 1
            more = write(upload, index, at, data, crc)
            self.received += len(data)
            if self.chunks in self.fail_at:
                raise Unavailable("the connection broke.")
            return more

        monkeypatch.setattr(ServerUpload, "write", counted)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr("polygraft.adapters.chunks.CHUNK_BYTES", CHUNK_BYTES)
    return Meter(monkeypatch)


def total(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


@pytest.mark.parametrize("broken", [{1}, {2}, {1, 2, 3}])
async def test_a_broken_upload_goes_on_where_it_stopped(
    broken: set[int], service: Service, folder: Path, meter: Meter
) -> None:
    files, told = big(folder), list[int]()
    meter.fail_at = broken
    async with AsyncClient(service.address, retry=QUICK) as client:
        upload = await client.upload_adapter(
            files, "dsum", allow_unverified_base=True, progress=lambda sent, _: told.append(sent)
        )
    assert upload.version.number == 1
    assert meter.received == total(files)  # not a byte twice
    assert told[-1] == total(files)


def test_the_synchronous_client_resumes_too(tmp_path: Path, folder: Path, meter: Meter) -> None:
    files = big(folder)
    meter.fail_at, meter.spoil_at = {2}, {1}
    with (
        service_in_thread(tmp_path / "store") as service,
        Client(service.address, retry=QUICK) as client,
    ):
        assert client.upload_adapter(files, "dsum", allow_unverified_base=True).version.number == 1
        before = meter.received
        again = client.upload_adapter(files, "dsum", allow_unverified_base=True)
        assert again.version.number == 1
        assert meter.received == before == total(files)


async def test_a_damaged_chunk_is_sent_again_and_only_that(
    service: Service, folder: Path, meter: Meter
) -> None:
    files = big(folder)
    meter.spoil_at = {1, 3}
    async with AsyncClient(service.address, retry=QUICK) as client:
        await client.upload_adapter(files, "dsum", allow_unverified_base=True)
    assert meter.received == total(files)
    assert meter.chunks == 3 + len(meter.spoil_at)


async def test_an_upload_that_gets_no_further_is_given_up(
    service: Service, folder: Path, meter: Meter
) -> None:
    meter.spoil_at = set(range(1, 1000))
    async with AsyncClient(service.address, retry=QUICK) as client:
        with pytest.raises(UploadCorrupt) as caught:
            await client.upload_adapter(big(folder), "dsum", allow_unverified_base=True)
    assert caught.value.code == "CHUNK_CORRUPT"
    assert meter.chunks >= QUICK.patient().attempts  # a lost status is asked for once more
    await until_idle(service.server)


def test_a_status_that_grpc_lost_is_asked_for_again_whatever_the_policy() -> None:
    lost = error_of(grpc.StatusCode.INTERNAL, "Internal error from Core", (), "here")
    assert isinstance(lost, Unavailable)
    resumption = Resumption(NO_RETRY)
    waits = [resumption.wait_after(lost) for _ in range(7)]
    assert waits == [0.05] * 5 + [None] * 2
    other = error_of(grpc.StatusCode.INTERNAL, "a bug", (), "here")
    assert Resumption(QUICK).wait_after(other) is None


class Wire:
    """UploadAdapter, message by message."""

    def __init__(self, service: Service) -> None:
        self._channel = grpc.aio.insecure_channel(service.address)
        self._service = service

    async def half(self, header: pb.UploadHeader, messages: list[Any]) -> None:
        """Sends a part and breaks the connection when the server has it."""
        end = asyncio.Event()
        expected = sum(len(message.chunk.data) for message in messages)

        async def some() -> AsyncIterator[pb.UploadAdapterRequest]:
            for message in messages:
                yield message
            await end.wait()

        serialize = pb.UploadAdapterRequest.SerializeToString
        method: Any = self._channel.stream_unary(
            "/polygraft.v1.AdapterService/UploadAdapter", request_serializer=serialize
        )
        call = method(some())
        while True:
            with suppress(UploadNotFound):
                status = await self._service.client.get_upload(header.upload_id)
                if sum(status.persisted.values()) >= expected:
                    break
            await asyncio.sleep(0.005)
        call.cancel()
        await self._channel.close()
        await until_idle(self._service.server)


async def test_a_client_that_hangs_up_leaves_what_it_sent_for_the_next_one(
    service: Service, folder: Path, meter: Meter
) -> None:
    source = UploadSource.open(big(folder))
    header = source.header("dsum", allow_unverified_base=True)
    await Wire(service).half(header, list(source.messages(header, {}))[:2])
    status = await service.client.get_upload(header.upload_id)
    assert (status.state, status.adapter_name, status.version) == ("receiving", "dsum", None)
    value = service.metrics().get_sample_value
    assert value("polygraft_uploads_unfinished") == 1
    assert value("polygraft_uploads_running") == 0
    assert value("polygraft_upload_staged_bytes") == MIB  # the least that one counts
    assert sorted(status.persisted.values())[:2] == [0, 0]
    upload = await service.client.upload_adapter(source.files, "dsum", allow_unverified_base=True)
    assert meter.received == total(dict(source.files))
    status = await service.client.get_upload(header.upload_id)
    assert (status.state, status.version) == ("published", upload.version)


async def test_an_upload_survives_a_restart_of_the_server(
    tmp_path: Path, folder: Path, meter: Meter
) -> None:
    source = UploadSource.open(big(folder))
    header = source.header("dsum", allow_unverified_base=True)
    async with running_service(tmp_path / "store") as service:
        await Wire(service).half(header, list(source.messages(header, {}))[:2])
        before = meter.received
    async with running_service(tmp_path / "store") as service:
        status = await service.client.get_upload(header.upload_id)
        assert before - sum(status.persisted.values()) < STRETCH_BYTES
        upload = await service.client.upload_adapter(
            source.files, "dsum", allow_unverified_base=True
        )
        assert upload.version.number == 1
        assert meter.received <= total(dict(source.files)) + STRETCH_BYTES
    assert not list((tmp_path / "store" / "staging").rglob("*.part"))


async def test_a_client_waits_for_a_server_that_restarts(tmp_path: Path, folder: Path) -> None:
    files = big(folder)
    async with running_service(tmp_path / "store") as service:
        port = service.server.port
        received = asyncio.Event()
        write = UploadReceiver._write

        async def cut(receiver: UploadReceiver, *arguments: Any) -> bool:
            await write(receiver, *arguments)
            received.set()
            await asyncio.sleep(60)  # until the server is taken down
            return True

        patch = pytest.MonkeyPatch()
        patch.setattr(UploadReceiver, "_write", cut)
        client = AsyncClient(service.address, retry=RetryPolicy(first_wait=0.05, longest_wait=0.2))
        push = client.upload_adapter(files, "dsum", allow_unverified_base=True)
        pushing = asyncio.create_task(push)
        await received.wait()
        await service.server.listener.stop(0)
    patch.undo()
    async with running_service(tmp_path / "store", port=port) as service:
        assert service.server.port == port
        assert (await pushing).version.number == 1
        await client.close()


async def test_conflicts_gaps_and_unknown_ids_have_their_own_errors(
    service: Service, folder: Path
) -> None:
    source = UploadSource.open(big(folder))
    header = source.header("dsum", allow_unverified_base=True)
    messages = list(source.messages(header, {}))
    await Wire(service).half(header, messages[:2])
    other = pb.UploadHeader()
    other.CopyFrom(header)
    other.alias = "live"
    gap = pb.UploadAdapterRequest(chunk=messages[2].chunk)
    gap.chunk.offset_bytes = 5
    for sent, error in (
        ([pb.UploadAdapterRequest(header=other)], UploadConflict),
        ([messages[0], gap], UploadOutOfRange),
    ):
        with pytest.raises(error) as caught:
            await send(service, sent)
        assert caught.value.metadata.get("offset", "0") == "0"
    with pytest.raises(UploadNotFound):
        await service.client.get_upload("nobody")
    await send(service, messages)


def outcomes(service: Service) -> dict[str, float | None]:
    return {
        outcome: service.metrics().get_sample_value("polygraft_uploads_total", {"outcome": outcome})
        for outcome in ("published", "known", "rejected", "expired")
    }


async def send(service: Service, messages: list[Any]) -> Any:
    async with grpc.aio.insecure_channel(service.address) as channel:
        method: Any = channel.stream_unary(
            "/polygraft.v1.AdapterService/UploadAdapter",
            request_serializer=pb.UploadAdapterRequest.SerializeToString,
            response_deserializer=pb.UploadAdapterResponse.FromString,
        )
        return await service.client._finish(method(iter(messages)))


async def test_content_that_is_published_is_answered_at_the_header(
    service: Service, folder: Path, meter: Meter
) -> None:
    files = big(folder)
    source = UploadSource.open(files)
    await service.client.upload_adapter(files, "dsum", allow_unverified_base=True)
    before = meter.received
    header = source.header("dsum", allow_unverified_base=True, alias="canary")
    assert outcomes(service) == {"published": 1, "known": 0, "rejected": 0, "expired": 0}
    told: list[tuple[int, int]] = []
    await service.client.upload_adapter(
        files, "dsum", allow_unverified_base=True, progress=lambda *done: told.append(done)
    )
    assert told[-1] == (total(files), total(files))
    response = await send(service, [pb.UploadAdapterRequest(header=header)])
    assert (response.version.number, response.alias.alias) == (1, "canary")
    assert outcomes(service) == {"published": 1, "known": 2, "rejected": 0, "expired": 0}
    assert meter.received == before
    await service.client.move_alias("dsum", "canary", 1)
    await service.client.delete_adapter("dsum")
    again = await service.client.upload_adapter(files, "dsum", allow_unverified_base=True)
    assert again.version.number == 2
    with pytest.raises(PolygraftError):
        await service.client.get_adapter("dsum@canary")
