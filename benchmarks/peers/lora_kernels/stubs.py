"""Stands in for the frameworks around unpacked kernel files: modules made in memory, no file.

Packages whose files were unpacked are made with their folder but without running their
`__init__.py`, which would import the framework.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


def module(name: str, **contents: Any) -> types.ModuleType:
    """A module of this name with these contents, found by later imports."""
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, made)
    return made


def package(name: str, folder: Path) -> None:
    """A package whose modules are read from `folder`."""
    module(name).__path__ = [str(folder)]


class Quiet(logging.Logger):
    """vLLM's logger has two methods more."""

    def warning_once(self, *arguments: Any, **options: Any) -> None:
        """Nothing: which of their configurations was found is not ours to report."""

    info_once = warning_once


class Environment:
    """Every variable of a framework's environment at its default: off."""

    def __getattr__(self, name: str) -> Any:
        return None


def install_vllm(sources: Path) -> None:
    """Make `vllm.lora.ops.triton_ops.lora_{shrink,expand}_op` importable."""
    import torch
    import triton
    import triton.language as tl

    if "vllm" in sys.modules:
        return

    def to_device(values: Any, *, dtype: Any, device: Any) -> Any:
        return torch.tensor(values, dtype=dtype, device=device)

    def refuse(**_: Any) -> None:
        raise AttributeError  # their own fallback: the function instead of an operator

    root = sources / "vllm"
    package("vllm", root)
    module("vllm.envs", VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None,
           VLLM_LORA_ENABLE_DUAL_STREAM=False, VLLM_LORA_DISABLE_PDL=True)  # fmt: skip
    module("vllm.logger", init_logger=Quiet)
    platform = types.SimpleNamespace(
        is_cuda=torch.cuda.is_available,
        has_device_capability=lambda number: torch.cuda.get_device_capability()[0] * 10 >= number,
    )
    module("vllm.platforms", current_platform=platform)
    module("vllm.utils")
    module("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    module("vllm.utils.torch_utils", async_tensor_h2d=to_device, direct_register_custom_op=refuse)
    module("vllm.triton_utils", tl=tl, triton=triton, HAS_TRITON=True)
    for name in ("lora", "lora.ops", "lora.ops.triton_ops"):
        package(f"vllm.{name}", root.joinpath(*name.split(".")))


class Phase(StrEnum):
    """SGLang's kinds of steps."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass
class LoRABatchInfo:
    """What SGLang's chunked kernels read of a step; their field names."""

    use_cuda_graph: bool
    bs: int
    num_segments: int
    seg_indptr: Any
    weight_indices: Any
    lora_ranks: Any
    scalings: Any
    max_len: int
    seg_lens: Any
    permutation: Any


class _Variable:
    def get(self) -> None:
        """The default of every variable that is read: unset."""


def install_sglang(sources: Path) -> None:
    """Make SGLang's chunked kernels and its plan-driven runner importable."""
    import torch

    if "sglang" in sys.modules:
        return

    def architecture(major: int) -> str:
        return {9: "sm90"}.get(major, "sm100" if major >= 10 else "default")

    def uncached(_: Callable[..., Any]) -> Callable[[Any], Any]:
        return lambda kernel: kernel

    root = sources / "sglang"
    for name in ("", ".srt", ".srt.lora", ".srt.lora.dense", ".kernels", ".kernels.ops",
                 ".kernels.ops.lora", ".kernels.ops.lora.common", ".kernels.ops.lora.dense",
                 ".kernels.ops.lora.moe"):  # fmt: skip
        package(f"sglang{name}", root.joinpath(*name.split(".")[1:]))

    class Variables:
        def __getattr__(self, name: str) -> _Variable:
            return _Variable()

    def device_name() -> str:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"

    module("sglang.srt.environ", envs=Variables())
    module("sglang.srt.utils", cached_triton_kernel=uncached, get_device_name=device_name)
    module("sglang.srt.lora.utils", Phase=Phase, LoRABatchInfo=LoRABatchInfo,
           architecture_for_capability=architecture)  # fmt: skip
    module("sglang.kernels.ops.lora.moe.virtual_experts", _align_block_size_jit=align_blocks)
    try:
        import msgspec  # noqa: F401
    except ImportError:
        module("msgspec", Struct=_Struct)


def geometry_on_cpu(lora_b: Any) -> Callable[..., Any]:
    """SGLang's `slice_geometry` without its demand for a GPU, to rehearse in the interpreter."""
    from contextlib import nullcontext
    from unittest.mock import patch

    def slice_geometry(offsets: Any, block: int, device: Any, columns: Any = None) -> Any:
        rows, columns = lora_b._geometry_inputs(offsets, block, columns)
        with (
            patch("torch.cuda.device", lambda _: nullcontext()),
            patch("torch.cuda.is_current_stream_capturing", lambda: False),
        ):
            return lora_b._build_geometry(rows, block, device, columns)

    return slice_geometry


class _Struct:
    """As much of msgspec's as is used: keyword arguments, class defaults."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def align_blocks(ids: Any, block_size: int, num_buckets: int, scratch: Any = None) -> Any:
    """Rows sorted by bucket, each bucket padded to whole blocks: what their compiled routine makes.

    Returns the row numbers (padding: the number of rows), the bucket of each block (-1: none) and
    how many places are used. It runs once per step and is not timed.
    """
    import torch

    flat = ids.reshape(-1).tolist()
    capacity = len(flat) + num_buckets * (block_size - 1)
    rows: list[int] = []
    buckets: list[int] = []
    for bucket in range(num_buckets):
        own = [row for row, found in enumerate(flat) if found == bucket]
        blocks = -(-len(own) // block_size)
        rows += own + [len(flat)] * (blocks * block_size - len(own))
        buckets += [bucket] * blocks
    used = len(rows)
    capacity = -(-capacity // block_size) * block_size
    rows += [len(flat)] * (capacity - used)
    buckets += [-1] * (capacity // block_size - len(buckets))
    tables = (torch.tensor(values, dtype=torch.int32, device=ids.device)
              for values in (rows, buckets, [used]))  # fmt: skip
    return tuple(tables)
