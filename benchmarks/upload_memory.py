#!/usr/bin/env python3
"""Measure how much memory a large upload takes on either side, over gRPC.

    .venv/bin/python benchmarks/upload_memory.py --json upload.json

The file holds random bytes: all of it is sent, staged and hashed, and then it is refused. Memory is
the peak of resident memory above where it was, which Linux tells.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import asyncio
import os
import tempfile
import time
from collections.abc import Callable

from rich.console import Console

from benchmarks.figures import Figure, Figures
from benchmarks.options import parse_options
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.progress import progress_bar
from polygraft.adapters.fingerprint import resolve_base
from polygraft.client import AdapterInvalid, AsyncClient, Client

PRESETS = {"smoke": 20, "issue": 500}  # MiB
CHUNKS = 64  # MiB that the growth is to stay below: buffers of gRPC, threads and a few chunks
BASE = "builtin:nano"


def upload(folder: Path, address: str) -> None:
    """With the synchronous client."""
    with Client(address) as client:
        client.upload_adapter(folder, "large", allow_unverified_base=True)


def upload_asynchronously(folder: Path, address: str) -> None:
    """With the asynchronous client."""

    async def run() -> None:
        async with AsyncClient(address) as client:
            await client.upload_adapter(folder, "large", allow_unverified_base=True)

    asyncio.run(run())


def measure(
    send: Callable[[Path, str], None], folder: Path, server: PolygraftServer
) -> tuple[float, float, float]:
    """Seconds, and the growth of client and server in MiB."""
    processes = (os.getpid(), server.process_ids()[0])
    before = [resident(process) for process in processes]
    for process in processes:
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins here
    started = time.monotonic()
    try:
        send(folder, server.address)
    except AdapterInvalid:
        seconds = time.monotonic() - started
    else:
        raise RuntimeError("random bytes were published")
    client, served = (
        resident(process, "VmHWM") - was for process, was in zip(processes, before, strict=True)
    )
    return seconds, client, served


def resident(process: int, field: str = "VmRSS") -> float:
    """MiB; VmHWM is the peak."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} has no {field}")


def figures_of(size: int, measured: dict[str, tuple[float, float, float]]) -> Figures:
    """What is reported."""
    figures = []
    for name, (seconds, client, server) in measured.items():
        figures += [
            Figure(f"{name} client, growth of the client", client, "MiB", at_most=CHUNKS),
            Figure(f"{name} client, growth of the server", server, "MiB", at_most=CHUNKS),
            Figure(f"{name} client, rate with hashing on both sides", size / seconds, "MiB/s"),
        ]
    setting = f"{BASE}, one upload of {size} MiB, refused at its end"
    return Figures("Memory of an upload", setting, tuple(figures))


def main() -> int:
    """Measure, print the figures and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    size = PRESETS[options.preset]
    ways = {"synchronous": upload, "asynchronous": upload_asynchronously}
    with tempfile.TemporaryDirectory(prefix="polygraft-benchmark-") as made:
        folder = Path(made)
        with progress_bar(total=2 + len(ways)) as progress:
            progress("making the file and starting the server")
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
            with (folder / "adapter_model.safetensors").open("wb") as stream:
                for _ in range(size):
                    stream.write(os.urandom(1 << 20))
            measured = {}
            with PolygraftServer(resolve_base(BASE), {}) as server:
                for name, send in ways.items():
                    progress(f"uploading with the {name} client")
                    measured[name] = measure(send, folder, server)
    figures_of(size, measured).report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
