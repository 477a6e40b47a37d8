"""`polygraft serve` as a process of its own: what it prints, and how a signal ends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
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
    base = save_base(tmp_path / "base", tiny_llama(), byte_tokenizer())
    command = [str(PROGRAM), "serve", "--model", str(base), "--store", str(tmp_path / "store")]
    command += ["--port", "0", "--metrics-port", "0", "--dtype", "float32"]
    command += ["--set", "engine.threads=1"]
    popen = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
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
