"""What GPU and software this is; or why there is nothing to check. Changes no setting of a GPU."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

NO_GPU = 3
"""Exit code of a check that found no GPU; 2 is that of a wrong command line."""

_QUERY = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.limit"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures of a record come from."""

    gpu: str
    capability: str  # sm_90
    multiprocessors: int
    memory_gib: float
    l2_mib: float
    driver: str
    clocks: str  # as nvidia-smi tells them at the start, for the record only
    cuda: str
    torch: str
    triton: str
    transformers: str
    peft: str
    python: str
    processors: int
    date: str

    def sentence(self) -> str:
        """One line for a table's head."""
        return (
            f"{self.gpu} ({self.capability}, {self.memory_gib:.0f} GiB), driver {self.driver}, "
            f"CUDA {self.cuda}, torch {self.torch}, Triton {self.triton}, Python {self.python}, "
            f"{self.date}"
        )

    def to_json(self) -> dict[str, object]:
        """Every field."""
        return asdict(self)


def why_no_gpu() -> str | None:
    """None where a GPU can be used, else one sentence that says what is missing."""
    try:
        import torch
    except ImportError:
        return "this Python has no torch, so there is no GPU to check"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, so there is no GPU to check"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU on this machine"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "there is a GPU but no Triton; install the one that this torch asks for"
    return None


def describe() -> Machine:
    """The GPU that torch uses by default."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    driver, _, clocks = _nvidia_smi().partition(", ")
    return Machine(
        gpu=properties.name,
        capability=f"sm_{major}{minor}",
        multiprocessors=properties.multi_processor_count,
        memory_gib=properties.total_memory / 2**30,
        l2_mib=getattr(properties, "L2_cache_size", 0) / 2**20,
        driver=driver,
        clocks=clocks,
        cuda=torch.version.cuda or "none",
        **_software(),
    )


def describe_rehearsal() -> Machine:
    """No GPU: sizes are tiny, kernels are interpreted, times mean nothing."""
    return Machine(
        gpu="none: a rehearsal on the CPU",
        capability="none",
        multiprocessors=0,
        memory_gib=0.0,
        l2_mib=0.0,
        driver="none",
        clocks="",
        cuda="none",
        **_software(),
    )


def _software() -> dict[str, Any]:
    names = ("torch", "triton", "transformers", "peft")
    return {
        **{name: _version(name) for name in names},
        "python": platform.python_version(),
        "processors": os.cpu_count() or 1,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _nvidia_smi() -> str:
    """The driver's version, then clocks and limits; "unknown" without the tool."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip().splitlines()[0]
