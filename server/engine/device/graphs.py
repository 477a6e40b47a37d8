"""Steps that are captured once for each bucket of rows and replayed ever after."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_WARM_UPS = 2  # runs before a capture: kernels are compiled and libraries set up outside of it


class StepOutputs(NamedTuple):
    """Of every row of the bucket."""

    logits: Tensor  # [rows, vocab_size] float32
    greedy: Tensor  # [rows] int64: the lowest id of the highest logit
    finite: Tensor  # [rows] bool


class ReplayedStep(Protocol):
    """A step on static inputs."""

    def replay(self) -> StepOutputs:
        """Run it; the outputs are overwritten by the next replay of any step."""
        ...


class RepeatedStep:
    """Where there is nothing to capture: the same function on the same inputs."""

    def __init__(self, run: Callable[[], StepOutputs]) -> None:
        self._run = run

    def replay(self) -> StepOutputs:
        """See ReplayedStep."""
        return self._run()


class CapturedStep:
    """A CUDA graph. `pool` is the memory that graphs share, as only one runs at a time."""

    def __init__(self, run: Callable[[], StepOutputs], device: torch.device, pool: object) -> None:
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Why thread_local: loader threads copy adapters meanwhile, which is none of its business.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            self._outputs = run()

    def replay(self) -> StepOutputs:
        """See ReplayedStep."""
        self._graph.replay()
        return self._outputs


def capture(
    run: Callable[[], StepOutputs], device: torch.device, pool: object
) -> ReplayedStep | None:
    """A step to replay; None, with a warning, if this base does something that cannot be captured,
    such as to ask the device for a number."""
    if device.type != "cuda":
        return RepeatedStep(run)
    try:
        return CapturedStep(run, device, pool)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("CUDA graphs are off, steps are launched one by one: %s", error)
        torch.cuda.synchronize(device)
        return None
