"""DownloadAdapter, and the commands that move versions between servers as files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from adapter_support.directories import write_adapter
from server_support.service import (
    DSUM_RECIPE,
    Service,
    manifest_of,
    running_service,
    service_in_thread,
    until_idle,
)
from typer.testing import CliRunner, Result

from polygraft.adapters.chunks import crc32c
from polygraft.adapters.errors import AdapterCorrupt, UploadCorrupt
from polygraft.adapters.files import MANIFEST_FILE, find_files
from polygraft.adapters.manifest import canonical_json
from polygraft.cli import app
from polygraft.client import AdapterNotFound, Client, InvalidRequest, PolygraftError
from polygraft.client.download import Download
from polygraft.protos import adapters_pb2 as pb

PATH = "/polygraft.v1.AdapterService/DownloadAdapter"
SLOW = ("polygraft_errors_total", {"reason": "SLOW_READER"})


def trained(service: Service, root: Path) -> Path:
    """A directory with a manifest that names the server's base."""
    folder = write_adapter(root / "trained")
    (folder / "README.md").write_bytes(bytes(i % 7 + 65 for i in range(1 << 20)))
    manifest = manifest_of(service.server, find_files(folder), DSUM_RECIPE)
    (folder / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_download_gives_back_the_same_bytes(service: Service, tmp_path: Path) -> None:
    folder = trained(service, tmp_path)
    published = (await service.client.upload_adapter(folder, "dsum")).version
    told: list[tuple[int, int]] = []
    version = await service.client.download_adapter(
        "dsum", tmp_path / "back", progress=lambda done, total: told.append((done, total))
    )
    assert content(tmp_path / "back") == content(folder)
    assert version.digest == published.digest
    assert told[-1][0] == told[-1][1] == published.size_bytes
    again = await service.client.upload_adapter(tmp_path / "back", "other")
    assert again.version.digest == published.digest


def test_a_bare_directory_comes_back_with_the_manifest_it_was_given(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    with service_in_thread(tmp_path / "store") as service, Client(service.address) as client:
        published = client.upload_adapter(folder, "dsum", allow_unverified_base=True).version
        version = client.download_adapter("dsum@1", tmp_path / "new" / "back")
        assert version.digest == published.digest
        back = content(tmp_path / "new" / "back")
        assert {name: data for name, data in back.items() if name != MANIFEST_FILE} == content(
            folder
        )
        again = client.upload_adapter(tmp_path / "new" / "back", "dsum", allow_unverified_base=True)
        assert (again.version.number, again.version.digest) == (1, published.digest)


async def test_downloads_that_cannot_be_are_refused(service: Service, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        await service.client.download_adapter("nobody", tmp_path / "back")
    with pytest.raises(InvalidRequest):
        await service.client.download_adapter("", tmp_path / "back")
    record = service.publish("dsum", tmp_path / "a")
    full = tmp_path / "a"
    with pytest.raises(InvalidRequest, match="not empty"):
        await service.client.download_adapter("dsum", full)
    path = service.server.registry.files(record.digest)["adapter_config.json"]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(AdapterCorrupt):
        await service.client.download_adapter("dsum", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "store"]


async def test_a_version_that_is_deleted_meanwhile_is_sent_to_its_end(
    service: Service, tmp_path: Path
) -> None:
    folder = trained(service, tmp_path)
    await service.client.upload_adapter(folder, "dsum")
    async with grpc.aio.insecure_channel(service.address) as channel:
        method: Any = channel.unary_stream(
            PATH,
            request_serializer=pb.DownloadAdapterRequest.SerializeToString,
            response_deserializer=pb.DownloadAdapterResponse.FromString,
        )
        call = method(pb.DownloadAdapterRequest(adapter="dsum"))
        with Download(tmp_path / "back") as download:
            async for message in call:
                download.add(message)
                if message.WhichOneof("part") == "header":
                    await service.client.delete_adapter("dsum")
            download.finish()
    assert content(tmp_path / "back") == content(folder)


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store", stall_timeout=0.2) as service:
        files = find_files(write_adapter(tmp_path / "a"))
        files["README.md"] = tmp_path / "large"  # more than the buffers of both sides take
        with files["README.md"].open("wb") as stream:
            stream.truncate(32 << 20)
        service.server.registry.publish("dsum", manifest_of(service.server, files, None), files)
        async with grpc.aio.insecure_channel(service.address) as channel, asyncio.timeout(60):
            call: Any = channel.unary_stream(PATH)(
                pb.DownloadAdapterRequest(adapter="dsum").SerializeToString()
            )

            async def read_late() -> None:
                async for _ in call:
                    while service.metrics().get_sample_value(*SLOW) is None:
                        await asyncio.sleep(0.01)

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_late()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until_idle(service.server)


def header(manifest: bytes = b"{}", **files: bytes) -> pb.DownloadAdapterResponse:
    import hashlib

    version = pb.AdapterVersion(
        digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}", manifest_json=manifest.decode()
    )
    declared = [
        pb.FileDeclaration(
            name=name.replace("__", "."),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        for name, data in files.items()
    ]
    return pb.DownloadAdapterResponse(header=pb.DownloadHeader(version=version, files=declared))


def chunk(data: bytes, offset: int = 0, index: int = 0, crc: int = 0) -> pb.DownloadAdapterResponse:
    made = pb.FileChunk(file_index=index, offset_bytes=offset, data=data, crc32c=crc32c(data) ^ crc)
    return pb.DownloadAdapterResponse(chunk=made)


def other_digest() -> pb.DownloadAdapterResponse:
    message = header(README__md=b"abc")
    message.header.version.digest = "sha256:" + "0" * 64
    return message


def named(name: str) -> pb.DownloadAdapterResponse:
    message = header(README__md=b"abc")
    message.header.files[0].name = name
    return message


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [chunk(b"abc")],
        [header(README__md=b"abc")],
        [header(README__md=b"abc"), header(README__md=b"abc")],
        [header(README__md=b"abc"), chunk(b"ab")],
        [header(README__md=b"abc"), chunk(b"abcd")],
        [header(README__md=b"abc"), chunk(b"abd")],
        [header(README__md=b"abc"), chunk(b"bc", 1)],
        [header(README__md=b"abc"), chunk(b"abc", crc=1)],
        [header(README__md=b"abc"), chunk(b"abc", index=1)],
        [header(README__md=b"abc"), chunk(b"ab"), chunk(b"ab")],
        [other_digest(), chunk(b"abc")],
        [named("../../evil"), chunk(b"abc")],
        [named("/tmp/evil"), chunk(b"abc")],
        [named("manifest.json"), chunk(b"abc")],
        [named(""), chunk(b"abc")],
    ],
)
def test_a_client_writes_nothing_that_is_not_the_version(
    messages: list[pb.DownloadAdapterResponse], tmp_path: Path
) -> None:
    def receive() -> None:
        with Download(tmp_path / "back") as download:
            for message in messages:
                download.add(message)
            download.finish()

    with pytest.raises(UploadCorrupt):
        receive()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with service_in_thread(tmp_path / "store") as running:
        monkeypatch.setenv("POLYGRAFT_SERVER", running.address)
        yield running


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["adapters", *map(str, arguments)])


def test_the_command_downloads_a_version(commands: Service, tmp_path: Path) -> None:
    folder = trained(commands, tmp_path)
    run("push", folder, "dsum")
    shown = run("download", "dsum@1", tmp_path / "back")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("dsum@1  sha256:")
    assert content(tmp_path / "back") == content(folder)
    assert run("download", "dsum@1", tmp_path / "back").exit_code != 0
    version = json.loads(run("download", "dsum", tmp_path / "again", "--json").stdout)
    assert version["number"] == 1


def test_a_version_travels_as_one_file_under_its_digest(commands: Service, tmp_path: Path) -> None:
    published = json.loads(run("push", trained(commands, tmp_path), "dsum", "--json").stdout)
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    exported = run("export", "dsum", one)
    assert exported.exit_code == 0, exported.output
    assert "sha256:" in exported.stdout
    assert run("export", "dsum@live", two).exit_code == 0
    assert one.read_bytes() == two.read_bytes()
    assert run("export", "dsum", one).exit_code == 2
    imported = run("import", one, "copy", "--alias", "canary", "--require-verified", "--json")
    assert imported.exit_code == 0, imported.output
    found = json.loads(imported.stdout)
    assert found["version"]["digest"] == published["version"]["digest"]
    assert found["alias"]["alias"] == "canary"
    one.write_bytes(one.read_bytes()[:-1])
    refused = run("import", one, "copy")
    assert refused.exit_code != 0
    assert "differs from what an export writes" in refused.output
    assert run("import", tmp_path / "nothing", "copy").exit_code == 2
    leftovers = {p.name for p in tmp_path.iterdir()} - {"one.tar", "two.tar", "store", "trained"}
    assert leftovers == set()


def test_errors_of_the_tree_reach_the_caller(commands: Service, tmp_path: Path) -> None:
    with Client(commands.address) as client, pytest.raises(PolygraftError):
        client.download_adapter("nobody@3", tmp_path / "x")
    assert not (tmp_path / "x").exists()
