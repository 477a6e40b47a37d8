#!/usr/bin/env python3
"""Measure what loading cold adapters does to others: open loop, Poisson arrivals, over gRPC.

    .venv/bin/python benchmarks/latency.py --json latency.json

Warm requests arrive at 70 % of the measured capacity. Beside them comes one probe a second: in the
calm windows always for a resident adapter, in the loading windows for another cold one each time.
So both kinds of window do the same work, and differ in the loading alone.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console

from benchmarks.figures import Figure, Figures
from benchmarks.jobs import make_job
from benchmarks.load import Arrival, Stream, run_closed_loop, run_open_loop
from benchmarks.models import MODELS, RANKS
from benchmarks.options import Options, parse_options
from benchmarks.polygraft_client import open_client, stream_by
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.progress import Progress, progress_bar
from benchmarks.report import percentile
from benchmarks.systems import Job
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import RequestTrace, Shape, WorkloadRequest, make_workload


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured."""

    model: str
    num_warm: int  # adapters that stay resident, asked for by Zipf
    max_running: int
    num_capacity_requests: int  # in the closed loop that measures the capacity
    num_windows: int  # of each kind
    window_seconds: int  # and cold adapters of a window: one a second
    prompt_tokens: tuple[int, int] = (32, 128)
    output_tokens: int = 64
    probe_tokens: tuple[int, int] = (32, 4)  # of prompt and output
    load: float = 0.7  # of the capacity

    def shape(self, output_tokens: int) -> Shape:
        """What warm requests are drawn from."""
        least, most = self.prompt_tokens
        return Shape(MODELS[self.model]["vocab_size"], least, most, output_tokens)


PRESETS = {
    "smoke": Preset("tiny", 2, 4, 8, 1, 2, (4, 16), 8, (4, 2), 0.2),
    "issue": Preset("smollm2-135m", 16, 32, 96, 4, 20),
}
SPARE_ADAPTERS = 4  # least room for cold ones; the warm ones are pinned, in half of the rows


@dataclass(slots=True)
class Kind:
    """What was seen in the windows of one kind."""

    windows: list[list[RequestTrace]] = field(default_factory=list)  # of warm requests
    probes: list[RequestTrace] = field(default_factory=list)

    def gaps(self) -> list[float]:
        """Milliseconds between the tokens of warm requests."""
        return [gap for window in self.windows for gap in gaps(window)]

    def spread(self) -> float:
        """p99 of the worst window over that of the best: what the machine does by itself."""
        by_window = [percentile(gaps(window), 99) for window in self.windows]
        return max(by_window) / min(by_window)

    def probe_wait(self) -> list[float]:
        """Milliseconds to the first token of a probe."""
        return [1e3 * trace.time_to_first_token for trace in self.probes]


def gaps(traces: Sequence[RequestTrace]) -> list[float]:
    """Milliseconds between the tokens of each request."""
    return [1e3 * gap for trace in traces for gap in trace.inter_token_latencies]


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of a run."""

    capacity: float  # output tokens per second
    calm: Kind
    loading: Kind
    read_ms: float  # to bring a cold adapter to the device, as the server measured it, mean
    num_loads: int


def warm_arrivals(preset: Preset, names: Sequence[str], rate: float, seed: int) -> list[Arrival]:
    """Poisson arrivals of `rate` a second over one window; the same seed gives the same ones."""
    draw = random.Random(seed)
    times: list[float] = []
    at = draw.expovariate(rate)
    while at < preset.window_seconds:
        times.append(at)
        at += draw.expovariate(rate)
    shape = preset.shape(preset.output_tokens)
    workload = make_workload(shape, list(names), num_requests=len(times), concurrency=1, seed=seed)
    return [Arrival(at, request) for at, request in zip(times, workload.requests, strict=True)]


def probe_arrivals(preset: Preset, names: Sequence[str], seed: int) -> list[Arrival]:
    """One probe in the middle of each second, for the given adapters in turn."""
    draw = random.Random(seed)
    vocab_size = MODELS[preset.model]["vocab_size"]
    prompt_tokens, output_tokens = preset.probe_tokens
    prompts = [
        tuple(draw.randrange(vocab_size) for _ in range(prompt_tokens))
        for _ in range(preset.window_seconds)
    ]
    return [
        Arrival(0.5 + second, WorkloadRequest(prompt, names[second % len(names)], output_tokens))
        for second, prompt in enumerate(prompts)
    ]


def warm_rate(preset: Preset, capacity: float) -> float:
    """Warm requests per second that, with the probes, make the wanted share of the capacity."""
    return (preset.load * capacity - preset.probe_tokens[1]) / preset.output_tokens


async def measure_capacity(
    preset: Preset, stream: Stream, names: Sequence[str], seed: int
) -> float:
    """Output tokens per second in a closed loop that keeps every place in the batch busy."""
    workload = make_workload(
        preset.shape(preset.output_tokens),
        list(names),
        num_requests=preset.num_capacity_requests,
        concurrency=preset.max_running,
        seed=seed,
    )
    start = asyncio.get_running_loop().time()
    await run_closed_loop(stream, workload)
    return workload.num_output_tokens / (asyncio.get_running_loop().time() - start)


async def run_window(
    stream: Stream, warm: Sequence[Arrival], probes: Sequence[Arrival], into: Kind
) -> None:
    """One window, to the last token of its last request."""
    traces = await run_open_loop(stream, [*warm, *probes])
    into.windows.append(traces[: len(warm)])
    into.probes += traces[len(warm) :]


async def measure(
    preset: Preset, job: Job, server: PolygraftServer, seed: int, progress: Progress
) -> Measured:
    """Capacity first, then windows of both kinds in changing order, with the same arrivals."""
    names = list(job.adapters)
    warm, cold = names[: preset.num_warm], names[preset.num_warm :]
    calm, loading = Kind(), Kind()
    load_seconds, num_loads = 0.0, 0
    async with await open_client(server.address) as client:
        stream = stream_by(client)
        progress("capacity")
        await measure_capacity(preset, stream, warm, seed + 1)  # warms up
        capacity = await measure_capacity(preset, stream, warm, seed)
        rate = warm_rate(preset, capacity)
        for window in range(preset.num_windows):
            arrivals = warm_arrivals(preset, warm, rate, seed + window)
            for kind in (calm, loading) if window % 2 == 0 else (loading, calm):
                progress(f"window {window + 1}, {'cold' if kind is loading else 'resident'} probes")
                before = load_times(server)
                probes = probe_arrivals(preset, cold if kind is loading else warm, seed + window)
                await run_window(stream, arrivals, probes, kind)
                after = load_times(server)
                if kind is loading:
                    await asyncio.to_thread(server.make_cold, cold)
                    load_seconds += after[0] - before[0]
                    num_loads += after[1] - before[1]
    read_ms = 1e3 * load_seconds / num_loads
    return Measured(capacity, calm, loading, read_ms, num_loads)


def load_times(server: PolygraftServer) -> tuple[float, int]:
    """Seconds spent on bringing adapters to the device, and how many were brought, so far."""
    samples = server.metrics()
    seconds = [
        value
        for name, value in samples.items()
        if name.startswith("polygraft_adapter_load_seconds_sum")
    ]
    return sum(seconds), int(samples['polygraft_adapter_loads_total{tier="device"}'])


def figures_of(preset: Preset, options: Options, measured: Measured) -> Figures:
    """The table."""
    calm, loading = measured.calm.gaps(), measured.loading.gaps()
    resident, cold = measured.calm.probe_wait(), measured.loading.probe_wait()
    expected = percentile(resident, 50) + measured.read_ms
    return Figures(
        "Loading under load",
        f"{preset.model}, {options.dtype}, {options.threads} threads, Poisson arrivals at "
        f"{preset.load:.0%} of the capacity, {preset.num_windows} windows of "
        f"{preset.window_seconds} s of each kind; one probe a second, for a resident adapter in "
        "the calm windows, for a cold one in the loading windows.",
        (
            Figure("capacity, closed loop", measured.capacity, "tokens/s"),
            Figure("warm requests, of each kind", sum(map(len, measured.calm.windows))),
            Figure("cold adapters loaded", measured.num_loads),
            Figure("between tokens, calm, p50", percentile(calm, 50), "ms"),
            Figure("between tokens, loading, p50", percentile(loading, 50), "ms"),
            Figure("between tokens, calm, p99", percentile(calm, 99), "ms"),
            Figure("between tokens, loading, p99", percentile(loading, 99), "ms"),
            Figure(
                "p99, loading / calm", percentile(loading, 99) / percentile(calm, 99), at_most=1.1
            ),
            Figure("p99, worst calm window / best", measured.calm.spread()),
            Figure("first token of a resident probe, p50", percentile(resident, 50), "ms"),
            Figure("reading and placing a cold adapter, mean", measured.read_ms, "ms"),
            Figure("first token of a cold probe, p50", percentile(cold, 50), "ms"),
            Figure("cold / (resident + reading)", percentile(cold, 50) / expected, at_most=1.1),
        ),
    )


def make_latency_job(preset: Preset, options: Options) -> Job:
    """Warm and cold adapters."""
    longest = preset.prompt_tokens[1] + preset.output_tokens
    return make_job(
        preset.model,
        preset.num_warm + preset.window_seconds,
        dtype=options.dtype,
        threads=options.threads,
        seed=options.seed,
        max_concurrency=preset.max_running,
        max_sequence_tokens=longest,
    )


def main() -> int:
    """Measure, print the figures and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    preset = PRESETS[options.preset]
    with progress_bar(total=2 + 2 * preset.num_windows) as progress:
        progress("making the model and starting the server")
        job = make_latency_job(preset, options)
        warm = dict(list(job.adapters.items())[: preset.num_warm])
        cold = {name: path for name, path in job.adapters.items() if name not in warm}
        settings = engine_settings(replace(job, adapters=warm))
        room = max(RANKS) * max(len(warm) + SPARE_ADAPTERS, 2 * len(warm))
        with PolygraftServer(job.base, {**settings, "pool_rows": room}) as server:
            server.publish(warm, load=True, pin=True)
            server.publish(cold, load=False)
            server.make_cold(cold)
            measured = asyncio.run(measure(preset, job, server, options.seed, progress))
    figures_of(preset, options, measured).report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
