"""The engine end to end on an 8B-shaped random Llama: 32 requests of 32 adapters, and base only."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.big_model import LLAMA_3_8B, REHEARSAL, make_adapters, make_base, step_bytes
from benchmarks.gpu.calibrate import COPY_BYTES, copy_seconds
from benchmarks.prepared_engine import PreparedEngine
from benchmarks.profile_step import SteppedEngine
from benchmarks.systems import Job
from benchmarks.workload import BASE, Workload, WorkloadRequest

REQUESTS = 32
PROMPT = 128  # tokens
WARM_UP = 8  # steps
STEPS = 48  # measured, in each round
ROUNDS = 3


def run(bench: Bench) -> None:
    """Make the model, load the engine, decode with and without adapters in turns."""
    shape = REHEARSAL if bench.rehearsal else LLAMA_3_8B
    requests, prompt, steps, rounds = (4, 8, 3, 2) if bench.rehearsal else (
        REQUESTS, PROMPT, STEPS, ROUNDS
    )  # fmt: skip
    dtype = torch.float32 if bench.rehearsal else torch.bfloat16
    with tempfile.TemporaryDirectory(prefix="polygraft-gpu-check-") as folder:
        started = time.monotonic()
        make_base(Path(folder) / "base", shape, dtype, bench.device)
        adapters = make_adapters(Path(folder) / "adapters", shape, requests, dtype, bench.device)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        bench.emit("made", seconds=time.monotonic() - started)
        job = Job(
            base=Path(folder) / "base",
            adapters=adapters,
            dtype=str(dtype).removeprefix("torch."),
            threads=1 if bench.rehearsal else 8,
            max_concurrency=requests,
            max_sequence_tokens=prompt + 2 * requests + WARM_UP + steps,
        )
        started = time.monotonic()
        prepared = PreparedEngine(job, "plain", {"device": bench.device.type})
        bench.emit("loaded", seconds=time.monotonic() - started)
        try:
            _measure(bench, SteppedEngine(prepared), job, shape, prompt, steps, rounds)
        finally:
            prepared.close()


def _measure(
    bench: Bench,
    engine: SteppedEngine,
    job: Job,
    shape: dict[str, object],
    prompt: int,
    steps: int,
    rounds: int,
) -> None:
    seconds: dict[str, list[float]] = {"base only": [], "adapters": []}
    prefill: dict[str, list[float]] = {"base only": [], "adapters": []}
    names = list(job.adapters)
    for round_index in range(rounds):
        for kind, own in (("base only", [BASE] * len(names)), ("adapters", names)):
            workload = _workload(own, int(str(shape["vocab_size"])), prompt, job, round_index)
            started = time.monotonic()
            engine.begin(workload)
            prefill[kind].append(time.monotonic() - started)
            engine.decode(WARM_UP if not bench.rehearsal else 1)
            seconds[kind] += engine.decode(steps)
            engine.finish()
    size = 1 << 20 if bench.rehearsal else COPY_BYTES
    bandwidth = 2 * size / copy_seconds(size, bench.device)
    item = 4 if bench.rehearsal else 2
    moved = step_bytes(shape, rows=len(names), context=prompt + WARM_UP + steps, item_size=item)
    rates = {kind: len(names) / median(found) for kind, found in seconds.items()}
    bench.emit(
        "tokens_per_s",
        requests=len(names),
        adapters=len(names),
        rates=rates,
        step_ms={kind: 1e3 * median(found) for kind, found in seconds.items()},
        begin_s={kind: median(found) for kind, found in prefill.items()},
        bytes_per_s=bandwidth,
        step_bytes=moved,
        floor=len(names) * bandwidth / moved,
        kept=rates["adapters"] / rates["base only"],
        of_floor=rates["base only"] / (len(names) * bandwidth / moved),
    )


def _workload(adapters: list[str], vocab_size: int, prompt: int, job: Job, seed: int) -> Workload:
    """One request of random tokens for each; none ends while it is measured."""
    draw = random.Random(seed)
    requests = tuple(
        WorkloadRequest(
            tuple(draw.randrange(vocab_size) for _ in range(prompt)),
            adapter,
            job.max_sequence_tokens - prompt,
        )
        for adapter in adapters
    )
    return Workload(requests, len(requests))
