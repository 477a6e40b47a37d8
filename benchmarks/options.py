"""The options that the single-system benchmarks share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    preset: str
    json: Path | None
    dtype: str
    threads: int
    seed: int


def parse_options(description: str | None, presets: Iterable[str], default: str) -> Options:
    """The command line; leaves the process on a mistake or `--help`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--preset", choices=list(presets), default=default)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the engine")
    parser.add_argument("--seed", type=int, default=0)
    return Options(**vars(parser.parse_args()))
