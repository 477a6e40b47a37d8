#!/usr/bin/env python3
"""Measure choosing the next token of 32 rows: milliseconds on one core, best of 20.

.venv/bin/python benchmarks/sampling.py --vocabulary 49152
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from polygraft.server.engine.messages import EngineRequest, Sampling, Stopping
from polygraft.server.engine.sampling.chooser import TokenChooser
from polygraft.server.engine.sampling.logprobs import token_logprob

NUM_ROWS = 32
NUCLEUS = Sampling(0.8, top_p=0.9)
FILTERED = replace(NUCLEUS, top_k=50, min_p=0.05)
PENALISED = replace(FILTERED, repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1)
# name, sampling, standard deviation of the logits, top log-probabilities
CASES: tuple[tuple[str, Sampling, float, int | None], ...] = (
    ("greedy", Sampling(), 3.0, None),
    ("greedy, 20 top log-probabilities", Sampling(), 3.0, 20),
    ("temperature", Sampling(0.8), 3.0, None),
    ("temperature, top-p", NUCLEUS, 3.0, None),
    ("temperature, top-p, almost uniform logits", NUCLEUS, 0.1, None),
    ("temperature, top-k, top-p, min-p", FILTERED, 3.0, None),
    ("the same, all penalties, prompt of 500", PENALISED, 3.0, None),
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Measure choosing the next token of 32 rows.")
    parser.add_argument("--vocabulary", type=int, default=49_152)
    vocabulary = parser.parse_args().vocabulary
    print(f"| {NUM_ROWS} rows x {vocabulary} | ms |\n|---|---|")
    for name, sampling, deviation, num_top in CASES:
        seconds = measure(vocabulary, sampling, deviation, num_top)
        print(f"| {name} | {seconds * 1e3:.2f} |")


def measure(vocabulary: int, sampling: Sampling, deviation: float, num_top: int | None) -> float:
    """Seconds for one token of every row."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((NUM_ROWS, vocabulary), dtype=np.float32) * deviation
    prompt = tuple(generator.integers(0, vocabulary, 500).tolist())
    request = EngineRequest("r", prompt, Stopping(max_output_tokens=1), sampling)
    choosers = [TokenChooser(request) for _ in rows]
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for chooser, row in zip(choosers, rows, strict=True):
            token = chooser.choose(row)
            if num_top is not None:
                token_logprob(row, token, num_top)
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
