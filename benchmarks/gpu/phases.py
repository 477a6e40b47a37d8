"""The phases of the check in their order, each with the seconds it may take."""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 600  # seconds of the whole check


@dataclass(frozen=True, slots=True)
class Phase:
    """A function `module.function(bench)` that runs in a process of its own.

    It is stopped after `seconds`; what it has written until then counts.
    """

    name: str
    what: str
    seconds: int
    module: str
    function: str = "run"


PHASES = (
    Phase("calibrate", "ceilings of memory and matrix units", 30, "calibrate"),
    Phase("correctness", "float64, replays, isolation, graphs", 90, "correctness"),
    Phase("compile", "every kernel of the table, in parallel", 110, "kernel_table", "compile_all"),
    Phase("kernels", "the kernel table", 110, "kernel_table"),
    Phase("decode", "the linear layers of a decode step", 50, "decode_step"),
    Phase("serving", "the engine end to end", 190, "serving"),
)
