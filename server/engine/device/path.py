"""Which device computes, and with which kernels."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from polygraft.adapters.errors import InvalidRequest
from polygraft.kernels.fused.dispatch import target_of
from polygraft.kernels.fused.tiles import Target


@dataclass(frozen=True, slots=True)
class DevicePath:
    """A device and what runs on it. target: whose tiles the fused linear takes."""

    device: torch.device
    kernels: Literal["triton", "reference"] = "triton"
    target: Target = "sm_90"

    @property
    def is_cuda(self) -> bool:
        """Whether there are streams, graphs and pinned memory."""
        return self.device.type == "cuda"

    def current(self) -> AbstractContextManager[Any]:
        """While it lasts, this thread's kernels are launched on the device: Triton launches on the
        thread's current one, whatever its arguments are on."""
        return torch.cuda.device(self.device) if self.is_cuda else nullcontext()


def cuda_path(name: str) -> DevicePath:
    """The path of `cuda` or `cuda:N`. Raises InvalidRequest where it cannot be served from."""
    _require(
        torch.cuda.is_available(),
        name,
        f"torch {torch.__version__} finds no CUDA device on this machine.",
        "Serve with --device cpu, or install a CUDA build of torch and the driver.",
    )
    device = torch.device(name if ":" in name else f"{name}:{torch.cuda.current_device()}")
    count = torch.cuda.device_count()
    _require(
        (device.index or 0) < count,
        name,
        f"{name} is not one of the {count} CUDA devices of this machine.",
        f"Choose cuda:0 to cuda:{count - 1}.",
    )
    _require(
        importlib.util.find_spec("triton") is not None,
        name,
        "the kernels for a GPU need Triton, which is not installed.",
        "pip install 'polygraft[gpu]'",
    )
    try:
        target = target_of(device)
    except ValueError as error:
        raise InvalidRequest(f"{error}.", item="engine.device", found=name) from error
    return DevicePath(device, "triton", target)


def _require(condition: bool, name: str, message: str, hint: str) -> None:
    if not condition:
        raise InvalidRequest(message, item="engine.device", found=name, hint=hint)
