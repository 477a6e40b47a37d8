"""`polygraft serve` as a process of its own: what it prints, and how a signal ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapter_support.directories import peft_warnings_ignored
from peft import LoraConfig, get_peft_model
from tiny_models import byte_tokenizer, save_base, tiny_llama

from polygraft.client import Client, Unavailable
from polygraft.client.retry import NO_RETRY

PROGRAM = Path(sys.executable).with_name("polygraft")


@dataclass
class Process:
    """A server process, where it listens, and what it has printed so far."""

    popen: subprocess.Popen[str]
    address: str
    banner: str

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """The exit code after a signal, and the seconds it took."""
        started = time.monotonic()
        self.popen.send_signal(number)
        return self.popen.wait(20), time.monotonic() - started


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    save_base(tmp_path / "base", tiny_llama(), byte_tokenizer())
    with running(tmp_path) as started:
        yield started


@contextmanager
def running(root: Path, *, port: str = "0", **environment: str) -> Iterator[Process]:
    """A server for the base and the store in `root`, killed at the end."""
    command = [str(PROGRAM), "serve", "--model", str(root / "base"), "--store", str(root / "store")]
    command += ["--port", port, "--metrics-port", "0", "--dtype", "float32"]
    command += ["--set", "engine.threads=1"]
    popen = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env={**os.environ, **environment},
    )
    assert popen.stdout is not None
    lines: list[str] = []
    for line in popen.stdout:
        lines.append(line)
        if line.startswith("ready"):
            break
    banner = "".join(lines)
    found = re.search(r"gRPC\s+(127\.0\.0\.1:\d+)", banner)
    assert found, banner
    yield Process(popen, found[1], banner)
    popen.kill()
    popen.stdout.close()
    popen.wait()


def test_it_tells_where_it_is_and_finishes_what_runs_when_told_to_stop(process: Process) -> None:
    for word in ("LlamaForCausalLM, float32", "http://127.0.0.1:", "none yet", "ready"):
        assert word in process.banner
    with Client(process.address, retry=NO_RETRY) as client:
        stream = client.stream("Hi", max_output_tokens=200, ignore_eos=True)
        next(stream)
        ended: list[tuple[int, float]] = []
        ending = threading.Thread(target=lambda: ended.append(process.end(signal.SIGTERM)))
        ending.start()
        text = "".join(piece.text for piece in stream)
        ending.join()
        assert stream.generation is not None
        assert stream.generation.usage.output_tokens == 200
        assert text
        assert ended[0][0] == 0
        with pytest.raises(Unavailable):
            client.model()


def test_a_push_outlives_a_server_that_is_killed_in_the_middle_of_it(tmp_path: Path) -> None:
    base = tiny_llama()
    save_base(tmp_path / "base", base, byte_tokenizer())
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with peft_warnings_ignored():
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_bytes(bytes(range(256)) * 4000)
    files = {path.name: path for path in (tmp_path / "adapter").iterdir()}
    with running(tmp_path, POLYGRAFT_FAILPOINTS="upload.chunk=kill@3") as killed:
        port = killed.address.rpartition(":")[2]
        with ThreadPoolExecutor(1) as pool, Client(killed.address) as client:
            pushed = pool.submit(client.upload_adapter, files, "dsum", allow_unverified_base=True)
            assert killed.popen.wait(60) == -signal.SIGKILL
            with running(tmp_path, port=port) as restarted:
                assert restarted.address == killed.address
                version = pushed.result(60).version
                assert (version.adapter_name, version.number) == ("dsum", 1)
                client.download_adapter("dsum", tmp_path / "back")
                answer = client.generate("Hi", adapter="dsum", max_output_tokens=2)
                assert answer.version is not None
                assert answer.version.digest == version.digest
    for name, path in files.items():
        assert (tmp_path / "back" / name).read_bytes() == path.read_bytes()
