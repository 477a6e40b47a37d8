#!/usr/bin/env python3
"""Measure what a shared prefix saves until the first token, over gRPC, one request at a time.

    .venv/bin/python benchmarks/prefix_cache.py --json prefix.json

Each round has a new prefix: a first request computes it, more of the same adapter with other ends
find it, and one of another adapter does not.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import asyncio
import random
import time
from dataclasses import dataclass

from rich.console import Console

from benchmarks.figures import Figure, Figures
from benchmarks.jobs import make_job
from benchmarks.models import MODELS
from benchmarks.options import Options, parse_options
from benchmarks.polygraft_client import open_client
from benchmarks.polygraft_server import PolygraftServer
from benchmarks.progress import Progress, progress_bar
from benchmarks.report import percentile
from benchmarks.systems.polygraft_settings import engine_settings
from polygraft.client import AsyncClient


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is measured."""

    model: str
    num_rounds: int
    prefix_tokens: int
    end_tokens: int  # of a prompt, after the prefix
    hits: int = 3  # of a round


PRESETS = {
    "smoke": Preset("tiny", 2, 64, 4),
    "issue": Preset("smollm2-135m", 10, 512, 16),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """One request."""

    first_token_ms: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Requests by what they were to find."""

    cold: list[Probe]
    hits: list[Probe]
    others: list[Probe]  # another adapter, the same prompt


async def probe(client: AsyncClient, adapter: str, prompt: list[int]) -> Probe:
    """Ask for two tokens; time the first."""
    start = time.perf_counter()
    stream = client.stream(token_ids=prompt, adapter=adapter, max_output_tokens=2, ignore_eos=True)
    await anext(stream)
    first_token_ms = 1e3 * (time.perf_counter() - start)
    async for _ in stream:
        pass
    assert stream.generation is not None
    return Probe(first_token_ms, stream.generation.usage.cached_tokens)


async def measure(
    preset: Preset, names: list[str], address: str, seed: int, progress: Progress
) -> Measured:
    """All rounds, after one that warms up."""
    draw = random.Random(seed)
    vocab_size = MODELS[preset.model]["vocab_size"]
    own, other = names

    def tokens(number: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(number)]

    measured = Measured([], [], [])
    async with await open_client(address) as client:
        for index in range(preset.num_rounds + 1):
            progress(f"round {index}")
            prefix = tokens(preset.prefix_tokens)
            prompt = prefix + tokens(preset.end_tokens)
            cold = await probe(client, own, prompt)
            hits = [
                await probe(client, own, prefix + tokens(preset.end_tokens))
                for _ in range(preset.hits)
            ]
            foreign = await probe(client, other, prompt)
            if index > 0:
                measured.cold.append(cold)
                measured.hits.extend(hits)
                measured.others.append(foreign)
    return measured


def figures_of(preset: Preset, options: Options, measured: Measured) -> Figures:
    """The table."""

    def median(probes: list[Probe]) -> float:
        return percentile([probe.first_token_ms for probe in probes], 50)

    cold, hit = median(measured.cold), median(measured.hits)
    fewest = min(probe.cached_tokens for probe in measured.hits)
    return Figures(
        "Prefix cache",
        f"{preset.model}, {options.dtype}, {options.threads} threads, one request at a time: "
        f"{preset.prefix_tokens} shared tokens and {preset.end_tokens} of its own, "
        f"{preset.num_rounds} prefixes, {preset.hits} hits on each.",
        (
            Figure("first token, prefix computed, p50", cold, "ms"),
            Figure("first token, prefix found, p50", hit, "ms"),
            Figure("computed / found", cold / hit, at_least=5),
            Figure("tokens found, fewest", fewest, at_least=preset.prefix_tokens),
            Figure("first token, another adapter, p50", median(measured.others), "ms"),
            Figure(
                "tokens another adapter found",
                max(probe.cached_tokens for probe in measured.others),
                at_most=0,
            ),
        ),
    )


def main() -> int:
    """Measure, print the figures and write them."""
    options = parse_options(__doc__, PRESETS, "issue")
    preset = PRESETS[options.preset]
    with progress_bar(total=2 + preset.num_rounds) as progress:
        progress("making the model and starting the server")
        job = make_job(
            preset.model,
            2,
            dtype=options.dtype,
            threads=options.threads,
            seed=options.seed,
            max_concurrency=8,
            max_sequence_tokens=preset.prefix_tokens + preset.end_tokens + 2,
        )
        settings = {**engine_settings(job), "prefix_cache": True}
        with PolygraftServer(job.base, settings) as server:
            server.publish(job.adapters, load=True)
            names = list(job.adapters)
            measured = asyncio.run(measure(preset, names, server.address, options.seed, progress))
    figures_of(preset, options, measured).report(Console(), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
