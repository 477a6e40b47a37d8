"""What a run takes of the machine: device, threads, precision of the arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polygraft.trainer.config import Method, RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.progress import Observer

if TYPE_CHECKING:
    from polygraft.trainer.frozen_base import FrozenBase


def set_threads(config: RunConfig, base: FrozenBase) -> int:
    """The compute threads of this process; `run.train` puts the old number back.

    Why one for small bases: a second thread gains little on them, and on cores that others use as
    well (a server) threads spin waiting for each other, which was up to ten times slower.
    """
    import torch

    from polygraft.trainer.methods import SMALL_BASE_PARAMETERS

    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    elif base.model.num_parameters() < SMALL_BASE_PARAMETERS:
        torch.set_num_threads(1)
    return int(torch.get_num_threads())


def choose_device(wanted: str) -> str:
    """cpu or cuda. Raises RecipeError for a CUDA device that is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch sees no CUDA device.", item="runtime.device", hint="Use auto.")
    return wanted


def choose_precision(wanted: str, device: str, observer: Observer) -> str:
    """fp32 or bf16 for the arithmetic; the weights that are trained stay in fp32."""
    import torch

    if wanted == "auto":
        has_it = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_it else "fp32"
    if wanted == "bf16" and device == "cpu" and not has_cpu_bf16():
        observer.note("this CPU has no bf16 arithmetic, so bf16 is slower here than fp32")
    return wanted


def has_cpu_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's)."""
    import torch

    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def refuse_quantized(method: Method) -> None:
    """Raises RecipeError for a base in 4 bits, which is not built yet.

    Why a key at all: whoever comes with a QLoRA recipe reads a sentence, not "unknown key".
    """
    if getattr(method, "quantize", "none") == "none":
        return
    raise RecipeError(
        "a base in 4 bits (nf4) is not trained on yet, on no device.",
        item="method.quantize",
        hint="Leave it out: a LoRA on the whole base.",
    )
