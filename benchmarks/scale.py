#!/usr/bin/env python3
"""Measure serving many more adapters than there is room for, beside having all on the device.

    .venv/bin/python benchmarks/scale.py --json scale.json

Two servers on one store take turns: one with room for all adapters in use, all of which it has
loaded, and one with room for a few on the device and some more on the host. The same callers send
the same requests to both, for adapters drawn by Zipf.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from rich.console import Console

from benchmarks.figures import Figure, Figures
from benchmarks.jobs import make_job
from benchmarks.load import run_closed_loop
from benchmarks.models import MODELS
from benchmarks.options import Options, parse_options
from benchmarks.polygraft_client import open_client, stream_by
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.populated_store import RANK, name_of, prepare_store, version_bytes
from benchmarks.progress import Progress, progress_bar
from benchmarks.report import percentile
from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import ITEM_BYTES, engine_settings
from benchmarks.workload import RequestTrace, Shape, Workload, make_workload
from polygraft.client import AsyncClient

ROWS = 16  # of the device's pool that a version of rank 8 takes
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured."""

    model: str
    num_registered: int
    num_used: int
    num_on_device: int
    num_on_host: int
    max_running: int
    num_requests: int  # of one window
    num_windows: int  # of each server
    prompt_tokens: tuple[int, int] = (32, 128)
    output_tokens: int = 64
    num_popular: int = 8  # adapters that are always on the device, whose gaps are compared

    def shape(self) -> Shape:
        """What requests are drawn from."""
        least, most = self.prompt_tokens
        return Shape(MODELS[self.model]["vocab_size"], least, most, self.output_tokens)


PRESETS = {
    "smoke": Preset("tiny", 30, 20, 4, 8, 4, 24, 1, (4, 16), 8, 2),
    "issue": Preset("smollm2-135m", 10_000, 1000, 64, 256, 32, 160, 3),
}
RESIDENT, SCALED = "all resident", "scaled"


@dataclass(slots=True)
class Windows:
    """What was seen of one server."""

    traces: list[tuple[str, RequestTrace]] = field(default_factory=list)  # with the adapter
    seconds: float = 0.0
    loads: dict[str, float] = field(default_factory=dict)  # by tier
    load_seconds: dict[str, float] = field(default_factory=dict)
    processor_seconds: float = 0.0

    def add(self, workload: Workload, traces: Sequence[RequestTrace], seconds: float) -> None:
        """One window."""
        adapters = (request.adapter for request in workload.requests)
        self.traces += zip(adapters, traces, strict=True)
        self.seconds += seconds

    def add_loads(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """What the metrics say of it."""
        for tier in ("host", "device"):
            for name, into in (
                ("loads_total", self.loads),
                ("load_seconds_sum", self.load_seconds),
            ):
                sample = f'polygraft_adapter_{name}{{tier="{tier}"}}'
                into[tier] = into.get(tier, 0.0) + after[sample] - before[sample]

    @property
    def processor_ms(self) -> float:
        """Processor time of an output token, in milliseconds."""
        num_tokens = sum(len(trace.token_ids) for _, trace in self.traces)
        return 1e3 * self.processor_seconds / num_tokens

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return sum(len(trace.token_ids) for _, trace in self.traces) / self.seconds

    def gaps(self, adapters: Sequence[str]) -> list[float]:
        """Milliseconds between the tokens of these adapters' requests."""
        wanted = set(adapters)
        traces = (trace for adapter, trace in self.traces if adapter in wanted)
        return [1e3 * gap for trace in traces for gap in trace.inter_token_latencies]

    def waits(self) -> list[float]:
        """Milliseconds to the first token."""
        return [1e3 * trace.time_to_first_token for _, trace in self.traces]

    def milliseconds(self, tier: str) -> float:
        """Mean time of one load."""
        return 1e3 * self.load_seconds[tier] / max(1.0, self.loads[tier])


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the scaled server, in bytes."""

    configured: int  # for adapters on device and host
    grown: int  # by so much its memory grew under load
    host: int  # as it says itself
    host_limit: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of a run."""

    resident: Windows
    scaled: Windows
    memory: Memory


def row_bytes(base: Path, dtype: str) -> int:
    """What one rank row takes in the pools of all sites: q, k, v together, o, gate and up
    together, down."""
    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    qkv = hidden + 2 * head_dim * config["num_key_value_heads"]
    inputs = 3 * hidden + hidden + 2 * hidden + inner
    outputs = qkv + hidden + 2 * inner + hidden
    layers = int(config["num_hidden_layers"])
    return layers * ITEM_BYTES[dtype] * int(inputs + outputs)


def settings_of(preset: Preset, job: Job, server: str) -> tuple[dict[str, str | int], int]:
    """Engine settings, and bytes for adapters on the host."""
    places = preset.num_used if server == RESIDENT else preset.num_on_device
    host_bytes = preset.num_on_host * version_bytes(job.base)
    return {**engine_settings(job), "pool_rows": ROWS * places}, host_bytes


async def load_all(client: AsyncClient, names: Sequence[str], most: int) -> None:
    """Bring all to the device, in order."""
    free = asyncio.Semaphore(most)

    async def load(name: str) -> None:
        async with free:
            await client.load_adapter(name)

    await asyncio.gather(*map(load, names))


async def run_window(
    server: PolygraftServer, client: AsyncClient, workload: Workload, into: Windows | None
) -> None:
    """The requests of one window; not noted if it only warms up."""
    before, processor_before = server.metrics(), processor_seconds(server)
    start = time.perf_counter()
    traces = await run_closed_loop(stream_by(client), workload)
    seconds = time.perf_counter() - start
    if into is not None:
        into.add(workload, traces, seconds)
        into.add_loads(before, server.metrics())
        into.processor_seconds += processor_seconds(server) - processor_before


def processor_seconds(server: PolygraftServer) -> float:
    """What the server's first process, which serves, has used so far."""
    times = psutil.Process(server.process_ids()[0]).cpu_times()
    return float(times.user + times.system)


def resident_bytes(server: PolygraftServer) -> int:
    """Memory of the server's first process, which serves."""
    return int(psutil.Process(server.process_ids()[0]).memory_info().rss)


async def measure(
    preset: Preset, servers: Mapping[str, PolygraftServer], seed: int, progress: Progress
) -> tuple[Windows, Windows, int]:
    """Windows of both servers in changing order, with the same requests; and by how many bytes
    the scaled server grew."""
    names = [name_of(index) for index in range(preset.num_used)]
    windows = {RESIDENT: Windows(), SCALED: Windows()}
    clients = {name: await open_client(server.address) for name, server in servers.items()}

    def workload(number: int) -> Workload:
        return make_workload(
            preset.shape(),
            names,
            num_requests=preset.num_requests,
            concurrency=preset.max_running,
            seed=seed + number,
        )

    progress("loading all adapters")
    await load_all(clients[RESIDENT], names, 8)
    # The first requests pay for buffers of the engine; one adapter, so that they are no tier's.
    one = make_workload(
        preset.shape(), names[:1], num_requests=preset.max_running, concurrency=8, seed=seed
    )
    for name, server in servers.items():
        await run_window(server, clients[name], one, None)
    start_bytes = resident_bytes(servers[SCALED])
    for name, server in servers.items():
        progress(f"warming up, {name}")
        await run_window(server, clients[name], workload(-1), None)
    for number in range(preset.num_windows):
        order = (RESIDENT, SCALED) if number % 2 == 0 else (SCALED, RESIDENT)
        for name in order:
            progress(f"window {number + 1}, {name}")
            await run_window(servers[name], clients[name], workload(number), windows[name])
    grown = resident_bytes(servers[SCALED]) - start_bytes
    for client in clients.values():
        await client.close()
    return windows[RESIDENT], windows[SCALED], grown


def figures_of(preset: Preset, options: Options, measured: Measured) -> Figures:
    """The table."""
    resident, scaled, memory = measured.resident, measured.scaled, measured.memory
    popular = [name_of(index) for index in range(preset.num_popular)]
    gaps = {RESIDENT: resident.gaps(popular), SCALED: scaled.gaps(popular)}
    num_requests = len(scaled.traces)
    figures = [
        Figure("throughput, all resident", resident.throughput, "tokens/s"),
        Figure("throughput, scaled", scaled.throughput, "tokens/s"),
        Figure(
            "throughput, scaled / all resident",
            scaled.throughput / resident.throughput,
            at_least=0.8,
        ),
    ]
    figures += [
        Figure(f"processor time of a token, {name}", windows.processor_ms, "ms")
        for name, windows in ((RESIDENT, resident), (SCALED, scaled))
    ]
    for name, values in gaps.items():
        figures += [
            Figure(f"between tokens of warm requests, {name}, p{percent}", value, "ms")
            for percent in (50, 99)
            for value in (percentile(values, percent),)
        ]
    figures += [
        Figure(
            "p99 between tokens, scaled / all resident",
            percentile(gaps[SCALED], 99) / percentile(gaps[RESIDENT], 99),
            at_most=1.1,
        ),
        Figure("first token, all resident, p50", percentile(resident.waits(), 50), "ms"),
        Figure("first token, scaled, p50", percentile(scaled.waits(), 50), "ms"),
        Figure("first token, scaled, p99", percentile(scaled.waits(), 99), "ms"),
        Figure("adapters placed on the device, by request", scaled.loads["device"] / num_requests),
        Figure("adapters read from the store, by request", scaled.loads["host"] / num_requests),
        Figure("reading an adapter, mean", scaled.milliseconds("host"), "ms"),
        Figure("placing an adapter, mean", scaled.milliseconds("device"), "ms"),
        Figure("configured for adapters", memory.configured / MIB, "MiB"),
        Figure("grown by / configured", memory.grown / memory.configured, at_most=1.0),
        Figure("host copies / their limit", memory.host / memory.host_limit, at_most=1.0),
    ]
    return Figures(
        "Many adapters",
        f"{preset.model}, {options.dtype}, {options.threads} threads, {preset.num_registered} "
        f"adapters registered, {preset.num_used} used by Zipf, all of rank {RANK}; room for "
        f"{preset.num_on_device} on the device and {preset.num_on_host} on the host, beside a "
        f"server that has all on the device. {preset.max_running} callers, "
        f"{preset.num_windows} windows of {preset.num_requests} requests each; warm requests are "
        f"those of the {preset.num_popular} most popular adapters.",
        tuple(figures),
    )


def main() -> int:
    """Measure, print the figures and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    preset = PRESETS[options.preset]
    with progress_bar(total=5 + 2 * preset.num_windows) as progress:
        progress("making the model and the store")
        job = make_job(
            preset.model,
            1,
            dtype=options.dtype,
            threads=options.threads,
            seed=options.seed,
            max_concurrency=preset.max_running,
            max_sequence_tokens=preset.prompt_tokens[1] + preset.output_tokens,
        )
        store = prepare_store(
            job.base,
            num_distinct=preset.num_used,
            num_registered=preset.num_registered,
            seed=options.seed,
        )
        progress("starting the servers")
        engine, host_bytes = settings_of(preset, job, RESIDENT)
        with PolygraftServer(job.base, engine, host_bytes=host_bytes, copy_of=store) as resident:
            engine, host_bytes = settings_of(preset, job, SCALED)
            with PolygraftServer(job.base, engine, host_bytes=host_bytes, copy_of=store) as scaled:
                servers = {RESIDENT: resident, SCALED: scaled}
                one, other, grown = asyncio.run(measure(preset, servers, options.seed, progress))
                samples = scaled.metrics()
    device_bytes = row_bytes(job.base, options.dtype) * int(engine["pool_rows"])
    memory = Memory(
        configured=device_bytes + host_bytes,
        grown=grown,
        host=int(samples["polygraft_adapter_host_bytes"]),
        host_limit=int(samples["polygraft_adapter_host_bytes_limit"]),
    )
    figures_of(preset, options, Measured(one, other, memory)).report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
