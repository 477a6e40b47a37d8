#!/usr/bin/env python3
"""Measure how long after its reply a move of an alias is seen by another server of the store.

.venv/bin/python benchmarks/store_following.py                # a directory; also --store moto
"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import argparse
import contextlib
import random
import statistics
import tempfile
import threading
import time

from benchmarks.store_opening import fill, moto, open_store
from polygraft.adapters.registry import Registry
from polygraft.server.store_follower import StoreFollower

POLL_SECONDS = 0.5  # the server's default


def main() -> None:
    """Print a row of a table."""
    parser = argparse.ArgumentParser(description="Measure following another server's moves.")
    parser.add_argument("--store", default="", help="URL, or moto; default: a new directory")
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--moves", type=int, default=40)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = stack.enter_context(moto()) if options.store == "moto" else options.store
        fill(open_store(place, folder / "filling"), options.names, 2)
        one, two = (Registry(open_store(place, folder / name)) for name in ("one", "two"))
        follower = StoreFollower(
            two, poll_seconds=POLL_SECONDS, refresh_seconds=3600, on_reach=lambda reached: None
        )
        stack.callback(follower.close)
        moves, delays = zip(*(move(one, two) for _ in range(options.moves)), strict=True)
    kind = options.store.partition(":")[0] or "directory"
    print("| store | move, ms p50 / most | seen after its reply, s p50 / most |\n|---|---|---|")
    print(
        f"| {kind} | {statistics.median(moves) * 1e3:.0f} / {max(moves) * 1e3:.0f} "
        f"| {statistics.median(delays):.2f} / {max(delays):.2f} |"
    )


def move(one: Registry, two: Registry) -> tuple[float, float]:
    """Seconds of a move, and from its reply until the other registry answers with it."""
    name = f"name-{random.randrange(100)}"
    time.sleep(random.uniform(0.0, POLL_SECONDS))  # anywhere between two looks
    target = 3 - one.resolve(name).number
    started = time.perf_counter()
    one.move_alias(name, "live", target)
    replied = time.perf_counter()
    waiting = threading.Event()
    while two.resolve(name).number != target:
        waiting.wait(0.005)
    return replied - started, time.perf_counter() - replied


if __name__ == "__main__":
    main()
