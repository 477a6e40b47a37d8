"""UploadAdapter over the wire: what publishes, what does not, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from adapter_support.directories import lora_config, lora_tensors, write_adapter
from peft import PrefixTuningConfig
from server_support.fake_engine import FakeEngine
from server_support.service import DSUM_RECIPE, Service, manifest_of, running_service, until_idle

from polygraft.adapters.chunks import crc32c
from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterUnsupported,
    DeadlineExpired,
    InvalidRequest,
    PolygraftError,
    UploadCorrupt,
    UploadOutOfRange,
)
from polygraft.adapters.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, find_files
from polygraft.adapters.manifest import canonical_json
from polygraft.client import AdapterNotFound
from polygraft.client.failure import error_of
from polygraft.protos import adapters_pb2 as pb

Message = pb.UploadAdapterRequest
PATH = "/polygraft.v1.AdapterService/UploadAdapter"


def messages(
    files: Sequence[tuple[str, bytes]], *, name: str = "dsum", chunk: int = 500
) -> list[Message]:
    """A correct upload, for tests to spoil."""
    header = pb.UploadHeader(
        adapter_name=name,
        allow_unverified_base=True,
        files=[
            pb.FileDeclaration(
                name=file, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
            )
            for file, data in files
        ],
    )
    chunks = [
        pb.FileChunk(
            file_index=index,
            offset_bytes=at,
            data=data[at : at + chunk],
            crc32c=crc32c(data[at : at + chunk]),
        )
        for index, (_, data) in enumerate(files)
        for at in range(0, len(data), chunk)
    ]
    return [Message(header=header), *(Message(chunk=chunk) for chunk in chunks)]


def contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(name, path.read_bytes()) for name, path in sorted(find_files(folder).items())]


async def send(service: Service, sent: Sequence[Message]) -> pb.UploadAdapterResponse:
    async with grpc.aio.insecure_channel(service.address) as channel:
        upload = channel.stream_unary(
            PATH,
            request_serializer=Message.SerializeToString,
            response_deserializer=pb.UploadAdapterResponse.FromString,
        )
        while True:
            try:
                return await upload(iter(sent))
            except grpc.aio.AioRpcError as failed:
                trailers = failed.trailing_metadata()
                error = error_of(failed.code(), failed.details() or "", trailers, "here")
            if error.code != "STATUS_LOST":  # then the server has a reason, to be heard again
                raise error


async def test_a_peft_directory_becomes_version_1_and_live(
    service: Service, tmp_path: Path
) -> None:
    upload = await service.client.upload_adapter(
        write_adapter(tmp_path / "a"), "dsum", allow_unverified_base=True
    )
    version = upload.version
    assert (version.adapter_name, version.number, version.kind) == ("dsum", 1, "lora")
    assert not version.verified
    assert version.max_rank == 2
    assert upload.alias is not None
    assert (upload.alias.alias, upload.alias.number) == ("live", 1)
    answer = await service.client.generate("Hi", adapter="dsum")
    assert answer.version is not None
    assert answer.version.digest == version.digest


async def test_a_prefix_is_published_and_its_tokens_are_never_computed(
    service: Service, tmp_path: Path
) -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=4,
        num_layers=1,
        num_attention_heads=2,
        token_dim=6,
        task_type="CAUSAL_LM",
    )
    tensors = {"prompt_embeddings": torch.ones(4, 12)}
    upload = await service.client.upload_adapter(
        write_adapter(tmp_path / "a", config.to_dict(), tensors), "dsum", allow_unverified_base=True
    )
    assert (upload.version.kind, upload.version.virtual_tokens) == ("prefix", 4)
    await service.client.generate("Hi", adapter="dsum")
    request = service.engine.requests[-1]
    assert (request.num_virtual, request.num_prefix) == (4, 4)


async def test_a_run_directory_brings_its_manifest_and_is_verified(
    service: Service, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "run" / "adapter")
    manifest = manifest_of(service.server, find_files(folder), DSUM_RECIPE)
    (tmp_path / "run" / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    upload = await service.client.upload_adapter(tmp_path / "run", "dsum")
    assert upload.version.verified
    assert upload.version.variables == ("dialogue",)
    assert upload.version.digest == manifest.digest
    shown = (await service.client.get_adapter("dsum")).version
    assert shown is not None
    assert json.loads(shown.manifest_json)["kind"] == "lora"


async def test_the_same_content_is_the_same_version_and_other_content_the_next(
    service: Service, tmp_path: Path
) -> None:
    one, two = (
        write_adapter(tmp_path / "a"),
        write_adapter(tmp_path / "b", None, lora_tensors(seed=5)),
    )
    push = service.client.upload_adapter
    first = await push(one, "dsum", allow_unverified_base=True)
    again = await push(one, "dsum", allow_unverified_base=True)
    second = await push(two, "dsum", allow_unverified_base=True, alias="canary")
    assert (first.version.number, again.version.number, second.version.number) == (1, 1, 2)
    assert any("already published" in warning for warning in again.warnings)
    assert again.alias is None
    assert second.alias is not None
    assert second.alias.alias == "canary"


async def test_progress_is_told_up_to_the_last_byte(service: Service, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    told: list[tuple[int, int]] = []
    await service.client.upload_adapter(
        folder,
        "dsum",
        allow_unverified_base=True,
        progress=lambda sent, total: told.append((sent, total)),
    )
    total = sum(len(data) for _, data in contents(folder))
    assert told[-1] == (total, total)


Spoil = Callable[[list[Message]], list[Message]]


def with_header(**changes: object) -> Spoil:
    def spoil(sent: list[Message]) -> list[Message]:
        sent[0].header.MergeFrom(pb.UploadHeader(**changes))  # type: ignore[arg-type]
        return sent

    return spoil


def wrong_sha(sent: list[Message]) -> list[Message]:
    sent[0].header.files[0].sha256 = "0" * 64
    return sent


def file_named(name: str) -> Spoil:
    def spoil(sent: list[Message]) -> list[Message]:
        sent[0].header.files[0].name = name
        return sent

    return spoil


def flipped_bit(sent: list[Message]) -> list[Message]:
    data = bytearray(sent[1].chunk.data)
    data[10] ^= 1
    sent[1].chunk.data = bytes(data)
    return sent


def sealed_flip(sent: list[Message]) -> list[Message]:
    chunk = flipped_bit(sent)[1].chunk
    chunk.crc32c = crc32c(chunk.data)
    return sent


def no_crc(sent: list[Message]) -> list[Message]:
    sent[1].chunk.ClearField("crc32c")
    return sent


def second_header(sent: list[Message]) -> list[Message]:
    return [sent[0], sent[0], *sent[1:]]


def wrong_index(sent: list[Message]) -> list[Message]:
    sent[1].chunk.file_index = 7
    return sent


def huge_chunk(sent: list[Message]) -> list[Message]:
    sent[1].chunk.data = bytes((1 << 20) + 1)
    return sent


SPOILED: list[tuple[str, Spoil, type[PolygraftError]]] = [
    ("wrong sha256", wrong_sha, UploadCorrupt),
    ("truncated", lambda sent: sent[:-1], UploadCorrupt),
    ("flipped bit", flipped_bit, UploadCorrupt),
    ("flipped before it was sealed", sealed_flip, UploadCorrupt),
    ("no crc", no_crc, InvalidRequest),
    ("last chunk of a file lost", lambda sent: [*sent[:2], *sent[3:]], UploadCorrupt),
    ("chunk lost", lambda sent: [sent[0], *sent[2:]], UploadOutOfRange),
    ("no header", lambda sent: sent[1:], InvalidRequest),
    ("nothing", lambda sent: [], InvalidRequest),
    ("empty message", lambda sent: [Message()], InvalidRequest),
    ("second header", second_header, InvalidRequest),
    ("wrong file index", wrong_index, InvalidRequest),
    ("huge chunk", huge_chunk, InvalidRequest),
    ("path up", file_named("../adapter_config.json"), AdapterUnsupported),
    ("absolute path", file_named("/etc/passwd"), AdapterUnsupported),
    ("NUL in a name", file_named("adapter_config.json\0"), AdapterUnsupported),
    ("pickle", file_named("adapter_model.bin"), AdapterUnsupported),
    ("bad name", with_header(adapter_name="../evil"), InvalidRequest),
    ("bad alias", with_header(alias="7"), InvalidRequest),
    ("upper case", with_header(adapter_name="Dsum"), InvalidRequest),
]


@pytest.mark.parametrize(("what", "spoil", "error"), SPOILED, ids=[row[0] for row in SPOILED])
async def test_a_spoiled_upload_is_refused_and_harms_nobody(
    service: Service, tmp_path: Path, what: str, spoil: Spoil, error: type[PolygraftError]
) -> None:
    sent = messages(contents(write_adapter(tmp_path / "a")))
    with pytest.raises(error) as caught:
        await send(service, spoil(sent))
    assert caught.value.code != "INTERNAL"
    assert caught.value.metadata["request_id"]
    with pytest.raises(AdapterNotFound):
        await service.client.get_adapter("dsum")
    await until_idle(service.server)
    await send(service, messages(contents(tmp_path / "a")))  # the server goes on


async def test_files_that_cannot_be_applied_exactly_are_refused_by_name(
    service: Service, tmp_path: Path
) -> None:
    other, big = lora_config(peft_type="LOHA"), lora_config(r=300)
    tensors = lora_tensors()
    poisoned = {name: torch.full_like(value, float("nan")) for name, value in tensors.items()}
    for folder, error in (
        (write_adapter(tmp_path / "qalora", lora_config(use_qalora=True)), AdapterUnsupported),
        (write_adapter(tmp_path / "other", other), AdapterUnsupported),
        (write_adapter(tmp_path / "nan", None, poisoned), AdapterInvalid),
        (write_adapter(tmp_path / "rank", big, lora_tensors(300)), AdapterIncompatible),
    ):
        with pytest.raises(error):
            await service.client.upload_adapter(folder, "dsum", allow_unverified_base=True)


async def test_files_that_do_not_name_their_base_need_a_word(
    service: Service, tmp_path: Path
) -> None:
    with pytest.raises(AdapterIncompatible, match="allow_unverified_base"):
        await service.client.upload_adapter(write_adapter(tmp_path / "a"), "dsum")


async def test_a_client_that_hangs_up_leaves_nothing(service: Service, tmp_path: Path) -> None:
    sent = messages(contents(write_adapter(tmp_path / "a")))
    may_end = asyncio.Event()

    async def half() -> AsyncIterator[Message]:
        for message in sent[:3]:
            yield message
        await may_end.wait()

    async with grpc.aio.insecure_channel(service.address) as channel:
        call: Any = channel.stream_unary(PATH, request_serializer=Message.SerializeToString)(half())
        while not service.server.ledger()["running_uploads"]:
            await asyncio.sleep(0.005)
        call.cancel()
        await until_idle(service.server)
    with pytest.raises(AdapterNotFound):
        await service.client.get_adapter("dsum")


async def test_a_client_that_stalls_is_cut_off(tmp_path: Path) -> None:
    sent = messages(contents(write_adapter(tmp_path / "a")))

    async def stalls() -> AsyncIterator[Message]:
        yield sent[0]
        await asyncio.sleep(30)

    async with running_service(tmp_path / "store", stall_timeout=0.1) as service:
        async with grpc.aio.insecure_channel(service.address) as channel:
            call: Any = channel.stream_unary(PATH, request_serializer=Message.SerializeToString)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(stalls())
        error = caught.value
        found = error_of(error.code(), "", error.trailing_metadata(), "here")
        assert isinstance(found, DeadlineExpired)
        assert found.code == "UPLOAD_STALLED"


async def test_uploads_beyond_the_limit_are_told_to_come_back(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    settings = {"max_uploads": 1}
    async with running_service(tmp_path / "store", adapters=settings) as service:
        sent = messages(contents(tmp_path / "a"))
        may_end = asyncio.Event()

        async def slow() -> AsyncIterator[Message]:
            for message in sent[:2]:
                yield message
            await may_end.wait()
            for message in sent[2:]:
                yield message

        async with grpc.aio.insecure_channel(service.address) as channel:
            call: Any = channel.stream_unary(PATH, request_serializer=Message.SerializeToString)(
                slow()
            )
            while not service.server.ledger()["running_uploads"]:
                await asyncio.sleep(0.005)
            with pytest.raises(PolygraftError) as caught:
                await service.client.upload_adapter(
                    tmp_path / "a", "other", allow_unverified_base=True
                )
            assert caught.value.code == "TOO_MANY_UPLOADS"
            may_end.set()
            await call


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
async def test_a_directory_without_an_adapter_is_refused_before_anything_is_sent(
    service: Service, tmp_path: Path, missing: str
) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(AdapterInvalid, match=missing):
        await service.client.upload_adapter(folder, "dsum")


async def test_an_adapter_is_tested_in_a_context_shorter_than_the_test(tmp_path: Path) -> None:
    engine = FakeEngine(context_length=12)
    async with running_service(tmp_path / "store", engine=engine) as service:
        upload = await service.client.upload_adapter(
            write_adapter(tmp_path / "a"), "dsum", allow_unverified_base=True
        )
        assert upload.version.number == 1
