"""Whose time it is: attributes a thread's time to named categories of the functions it is in.

Works on any engine code: a rule names modules and functions by pattern, what is called from there
belongs to it until a rule of its own takes over, compiled code included. A function of `kernels/`
that no rule names makes its module a category, so nothing new is lost in "rest".
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from types import CodeType, FrameType
from typing import Any

REST = "rest of the step"
SCHEDULING = "scheduling"
RULES: tuple[tuple[str, str], ...] = (  # "module:qualified name" to category; the first match
    ("*:OutputHead.forward", "output head"),
    ("polygraft.kernels.native.lora:*", "LoRA"),
    ("polygraft.kernels.grouped:*", "LoRA"),
    ("polygraft.kernels.native.attention:*", "attention"),
    ("polygraft.kernels.attention:*", "attention"),
    ("polygraft.server.engine.kv_cache:*", "attention"),
    ("polygraft.kernels.native.rows:*", "norms, positions, activations"),
    ("polygraft.kernels.linear:*", "matrix products"),
    ("*Norm.forward", "norms, positions, activations"),
    ("*RotaryEmbedding.forward", "norms, positions, activations"),
    ("*:apply_rotary*", "norms, positions, activations"),
    ("transformers.activations:*", "norms, positions, activations"),
    ("torch.nn.modules.activation:*", "norms, positions, activations"),
    ("torch.nn.modules.sparse:Embedding.forward", "embedding"),
    ("polygraft.server.engine.sampling.*", "sampling and commit"),
    ("polygraft.server.engine.commit:*", "sampling and commit"),
    ("polygraft.server.engine.*_builder:*", "batch building"),
    ("polygraft.server.engine.*_tables:*", "batch building"),
    ("polygraft.server.engine.batch:*", "batch building"),
    ("polygraft.server.engine.model_runner:*", "layer glue"),
    ("polygraft.server.engine.*layer*:*", "layer glue"),
    ("polygraft.server.engine.sites:*", "layer glue"),
    ("polygraft.server.engine.interface:*", "layer glue"),
    ("polygraft.server.engine.engine:Engine._step", REST),
    ("polygraft.server.engine.*", SCHEDULING),
    ("transformers.*", "layer glue"),
)
WHOLE = {"output head", "sampling and commit"}  # rules for what they call do not apply inside
KERNELS = "polygraft.kernels."
CALIBRATION_CALLS = 20_000


def category_of(module: str, function: str) -> str | None:
    """The category that a function opens; None if it belongs to whoever calls it."""
    name = f"{module}:{function}"
    for pattern, category in RULES:
        if fnmatchcase(name, pattern):
            return category
    return f"kernel {module.removeprefix(KERNELS)}" if module.startswith(KERNELS) else None


@functools.cache
def seconds_per_event() -> float:
    """What one call or return seen by the profiler costs, on this machine: the least of some."""

    def nothing() -> None:
        pass

    def calls() -> None:
        for _ in range(CALIBRATION_CALLS):
            nothing()

    costs = []
    for _ in range(5):
        start = time.perf_counter()
        calls()
        plain = time.perf_counter() - start
        profiler = StepProfiler()
        profiler.run(calls)
        extra = sum(profiler.seconds.values()) - plain
        costs.append(extra / sum(profiler.events.values()))
    return max(0.0, min(costs))


class StepProfiler:
    """Profiles the calling thread while `run` runs a function. Not for nested use."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {REST: 0.0}
        self.events: dict[str, int] = {REST: 0}  # calls and returns seen: what profiling cost
        self._categories: dict[CodeType, str | None] = {}
        self._stack: list[str] = []
        self._current = REST
        self._since = 0.0

    def run(self, function: Callable[[], object]) -> None:
        """Call the function and add to `seconds` and `events`."""
        self._stack, self._current = [], REST
        self._since = self._clock()
        sys.setprofile(self._on_event)
        try:
            function()
        finally:
            sys.setprofile(None)
            self._switch(REST)

    def shares(self) -> dict[str, float]:
        """Each category's share of the time, 1 in all, less what profiling itself cost there."""
        cost = seconds_per_event()
        left = {
            category: max(0.0, seconds - cost * self.events[category])
            for category, seconds in self.seconds.items()
        }
        return {category: seconds / sum(left.values()) for category, seconds in left.items()}

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        self.events[self._current] += 1
        if event == "call":
            self._stack.append(self._current)
            opened = self._opened_by(frame)
            if opened is not None and opened != self._current and self._current not in WHOLE:
                self._switch(opened)
        elif event == "return" and self._stack:
            caller = self._stack.pop()
            if caller != self._current:
                self._switch(caller)

    def _opened_by(self, frame: FrameType) -> str | None:
        code = frame.f_code
        if code not in self._categories:
            module = str(frame.f_globals.get("__name__", ""))
            self._categories[code] = category_of(module, code.co_qualname)
        return self._categories[code]

    def _switch(self, category: str) -> None:
        now = self._clock()
        self.seconds[self._current] += now - self._since
        self.seconds.setdefault(category, 0.0)
        self.events.setdefault(category, 0)
        self._current, self._since = category, now
