#!/usr/bin/env python3
"""Measure what one adapter's crowd does to another adapter's requests, over gRPC.

    .venv/bin/python benchmarks/fairness.py --json fairness.json

A victim sends at a steady, modest rate, in three kinds of window: alone; beside adapters that each
keep their share of the batch busy; and beside the same with one of them at 20 times its share.
Then all adapters have more work waiting than is served, in equal and in unequal amounts.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rich.console import Console

from benchmarks.figures import Figure, Figures
from benchmarks.jobs import make_job
from benchmarks.load import Arrival, Stream, run_open_loop, trace_of
from benchmarks.models import MODELS
from benchmarks.options import Options, parse_options
from benchmarks.polygraft_client import open_client, stream_by
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.progress import Progress, progress_bar
from benchmarks.report import percentile
from benchmarks.systems.polygraft_settings import engine_settings
from benchmarks.workload import RequestTrace, WorkloadRequest


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured. All requests are equally long, so shares are easy to tell."""

    model: str
    num_adapters: int  # the victim is one of them
    max_running: int  # its share of each adapter keeps as many callers busy
    num_windows: int  # of each kind
    window_seconds: float
    victim_rate: float  # requests a second
    shares_seconds: float  # how long served tokens are counted
    prompt_tokens: int = 48
    output_tokens: int = 16
    settling: float = 2.0  # seconds that a crowd runs before it is measured
    flood: int = 20  # times its share
    # The same before shares are: who had little to ask for may take `FairRules.burst` first.
    shares_settling: float = 15.0

    @property
    def callers(self) -> int:
        """Callers that keep one adapter's share of the batch busy."""
        return self.max_running // self.num_adapters


PRESETS = {
    "smoke": Preset("tiny", 4, 4, 1, 1.0, 10.0, 1.0, 8, 4, 0.1, 20, 0.1),
    "issue": Preset("smollm2-135m", 16, 32, 4, 15.0, 1.5, 30.0),
}
KINDS = ("alone", "shared", "flooded")
VICTIM = 0  # index of its adapter


@dataclass(slots=True)
class Crowd:
    """Callers that send one request after the other, and what they were served."""

    stream: Stream
    prompts: Iterator[tuple[int, ...]]
    output_tokens: int
    settling: float
    tokens: dict[str, int] = field(default_factory=dict)  # by adapter

    async def call_forever(self, adapter: str) -> None:
        """One caller of one adapter."""
        while True:
            request = WorkloadRequest(next(self.prompts), adapter, self.output_tokens)
            async for token_ids in self.stream(request):
                self.tokens[adapter] = self.tokens.get(adapter, 0) + len(token_ids)

    @asynccontextmanager
    async def present(self, callers: Mapping[str, int]) -> AsyncIterator[None]:
        """So many callers of each adapter, settled; they are gone afterwards."""
        tasks = [
            asyncio.create_task(self.call_forever(adapter))
            for adapter, number in callers.items()
            for _ in range(number)
        ]
        try:
            await asyncio.sleep(self.settling if tasks else 0)
            yield
            failed = [task for task in tasks if task.done()]
            for task in failed:
                task.result()  # raises what ended it
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def prompts_of(preset: Preset, seed: int) -> Iterator[tuple[int, ...]]:
    """Random prompts, without end."""
    draw = random.Random(seed)
    vocab_size = MODELS[preset.model]["vocab_size"]
    while True:
        yield tuple(draw.randrange(vocab_size) for _ in range(preset.prompt_tokens))


def callers_beside_victim(preset: Preset, names: Sequence[str], kind: str) -> dict[str, int]:
    """How many callers each other adapter has in a window of the kind."""
    if kind == "alone":
        return {}
    _, first, *others = names
    times = preset.flood if kind == "flooded" else 1
    return {first: times * preset.callers, **dict.fromkeys(others, preset.callers)}


def victim_arrivals(preset: Preset, name: str, seed: int) -> list[Arrival]:
    """Evenly spaced requests over one window."""
    number = int(preset.window_seconds * preset.victim_rate)
    prompts = itertools.islice(prompts_of(preset, seed), number)
    return [
        Arrival(index / preset.victim_rate, WorkloadRequest(prompt, name, preset.output_tokens))
        for index, prompt in enumerate(prompts)
    ]


def jain_index(served: Sequence[float]) -> float:
    """1 if all got the same, 1 / n if one got everything (Jain, Chiu, Hawe 1984)."""
    return sum(served) ** 2 / (len(served) * sum(value * value for value in served))


async def measure_victim(
    preset: Preset, crowd: Crowd, names: Sequence[str], seed: int, progress: Progress
) -> dict[str, list[RequestTrace]]:
    """The victim's requests by kind of window; each round begins with another kind."""
    traces: dict[str, list[RequestTrace]] = {kind: [] for kind in KINDS}
    for window in range(preset.num_windows):
        arrivals = victim_arrivals(preset, names[VICTIM], seed + window)
        first = window % len(KINDS)
        for kind in KINDS[first:] + KINDS[:first]:
            progress(f"victim {kind}, window {window + 1}")
            async with crowd.present(callers_beside_victim(preset, names, kind)):
                traces[kind] += await run_open_loop(crowd.stream, arrivals)
    return traces


async def measure_shares(
    preset: Preset, crowd: Crowd, callers: Mapping[str, int]
) -> dict[str, float]:
    """Tokens per second that each adapter was served while all had requests waiting."""
    async with crowd.present(callers):
        await asyncio.sleep(preset.shares_settling - preset.settling)
        before, start = dict(crowd.tokens), time.perf_counter()
        await asyncio.sleep(preset.shares_seconds)
        seconds = time.perf_counter() - start
        return {
            name: (crowd.tokens.get(name, 0) - before.get(name, 0)) / seconds for name in callers
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of a run."""

    victim: dict[str, list[RequestTrace]]  # by kind of window
    equal: dict[str, float]  # tokens/s by adapter, as many callers for each
    unequal: dict[str, float]  # the same with one adapter at 20 times the callers

    def first_token(self, kind: str, percent: int) -> float:
        """Milliseconds."""
        values = [1e3 * trace.time_to_first_token for trace in self.victim[kind]]
        return percentile(values, percent)

    def whole(self, kind: str, percent: int) -> float:
        """Milliseconds from submission to the last token."""
        values = [1e3 * (trace.token_times[-1] - trace.submitted) for trace in self.victim[kind]]
        return percentile(values, percent)


async def measure(
    preset: Preset, names: Sequence[str], address: str, seed: int, progress: Progress
) -> Measured:
    """All windows, then the shares."""
    async with await open_client(address) as client:
        prompts = prompts_of(preset, seed + 1000)
        crowd = Crowd(stream_by(client), prompts, preset.output_tokens, preset.settling)
        progress("warming up")
        warm_up = (WorkloadRequest(next(crowd.prompts), name, 2) for name in names)
        await asyncio.gather(*(trace_of(crowd.stream, request) for request in warm_up))
        victim = await measure_victim(preset, crowd, names, seed, progress)
        progress("shares, equal callers")
        backlogged = dict.fromkeys(names, 2 * preset.callers)
        equal = await measure_shares(preset, crowd, backlogged)
        progress("shares, unequal callers")
        flooded = {**backlogged, names[1]: preset.flood * preset.callers}
        return Measured(victim, equal, await measure_shares(preset, crowd, flooded))


def figures_of(preset: Preset, options: Options, measured: Measured) -> Figures:
    """The table."""
    figures = [Figure("victim's requests, of each kind", len(measured.victim["alone"]))]
    for what, read in (("first token", measured.first_token), ("whole answer", measured.whole)):
        figures += [
            Figure(f"victim's {what}, {kind}, p{percent}", read(kind, percent), "ms")
            for kind in KINDS
            for percent in (50, 99)
        ]
        ratio = read("flooded", 99) / read("shared", 99)
        figures.append(Figure(f"p99 of {what}, flooded / shared", ratio, at_most=1.5))
        ratio = read("flooded", 99) / read("alone", 99)
        figures.append(Figure(f"p99 of {what}, flooded / alone", ratio))
    for name, shares in (("equal", measured.equal), ("unequal", measured.unequal)):
        index = jain_index(list(shares.values()))
        figures.append(Figure(f"Jain index, {name} backlogs", index, at_least=0.95))
        figures.append(Figure(f"served with {name} backlogs", sum(shares.values()), "tokens/s"))
    return Figures(
        "Fairness",
        f"{preset.model}, {options.dtype}, {options.threads} threads, {preset.num_adapters} "
        f"adapters, {preset.max_running} places in the batch, {preset.prompt_tokens} tokens in "
        f"and {preset.output_tokens} out. Victim: {preset.victim_rate:g} requests/s in "
        f"{preset.num_windows} windows of {preset.window_seconds:g} s of each kind; shared: "
        f"every other adapter keeps {preset.callers} callers waiting; flooded: one of them "
        f"{preset.flood} times as many. Backlogs: twice the share for each; unequal: "
        f"{preset.flood} times the share for one.",
        tuple(figures),
    )


def main() -> int:
    """Measure, print the figures and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    preset = PRESETS[options.preset]
    with progress_bar(total=4 + len(KINDS) * preset.num_windows) as progress:
        progress("making the model and starting the server")
        job = make_job(
            preset.model,
            preset.num_adapters,
            dtype=options.dtype,
            threads=options.threads,
            seed=options.seed,
            max_concurrency=preset.max_running,
            max_sequence_tokens=preset.prompt_tokens + preset.output_tokens,
        )
        with PolygraftServer(job.base, engine_settings(job)) as server:
            server.publish(job.adapters, load=True)
            names = list(job.adapters)
            measured = asyncio.run(measure(preset, names, server.address, options.seed, progress))
    figures_of(preset, options, measured).report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
