"""Times variants against each other: captured graphs over rotated weights, in turns.

Without a GPU the same code runs plain functions by the host's clock, to rehearse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Run = Callable[[int], object]  # launches the work on weights copy i


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds of one launch over all rounds."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        """From at least two samples in seconds."""
        tenths = quantiles(samples, n=10, method="inclusive")
        return cls(1e6 * median(samples), 1e6 * tenths[0], 1e6 * tenths[-1])

    def to_json(self) -> list[float]:
        """[median, p10, p90]."""
        return [self.median, self.p10, self.p90]


@dataclass(frozen=True, slots=True)
class Replay:
    """A graph of `launches` launches, or a function that does them."""

    run: Callable[[], object]
    launches: int


def capture(run: Run, copies: int, device: torch.device) -> Replay:
    """A CUDA graph of one launch on each copy of the weights. Without a GPU: a loop.

    Three runs come first, so that kernels are compiled and scratch is allocated outside of it.
    """

    def all_copies() -> None:
        for index in range(copies):
            run(index)

    if device.type != "cuda":
        return Replay(all_copies, copies)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            all_copies()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):  # some keep scratch by stream
        all_copies()
    torch.cuda.synchronize()
    return Replay(graph.replay, copies)


def interleaved(
    replays: Mapping[str, Replay], device: torch.device, *, rounds: int, warm_up: int
) -> dict[str, Times]:
    """Each variant once a round, forwards and backwards in turn (A B C, C B A), `rounds` rounds.

    So a clock that drifts, or heat, meets all of them alike.
    """
    for _ in range(warm_up):
        for replay in replays.values():
            replay.run()
    samples: dict[str, list[float]] = {name: [] for name in replays}
    order = list(replays)
    for number in range(max(rounds, 2)):
        for name in order if number % 2 == 0 else order[::-1]:
            replay = replays[name]
            samples[name].append(seconds_of(replay.run, device) / replay.launches)
    return {name: Times.of(values) for name, values in samples.items()}


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """One run, by the device's own events where it has any."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = _event(), _event()
    torch.cuda.synchronize()
    run()  # Why: behind it the timed one is launched before the GPU is free, so no launch is timed
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
