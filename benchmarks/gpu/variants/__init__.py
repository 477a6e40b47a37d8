"""Ways to compute one site of one step, each made for a `SiteCase`; launched per weights copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from benchmarks.gpu.sites import SiteCase

Launch = Callable[[int], Tensor]
"""Computes Y [M, N] with weights copy i, into the same memory each time."""


class VariantAbsent(Exception):
    """It cannot run here or not on this case; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A function of a module of this package: `make(case: SiteCase) -> Launch`."""

    module: str
    function: str = "make"
    is_ours: bool = False
    is_peer: bool = False  # a system that ours is to be faster than
    is_eager: bool = False  # cannot be captured: timed with its launches, never compared
    has_adapters: bool = True


VARIANTS = {
    "cublas": Variant("cublas", has_adapters=False),
    "ours": Variant("ours", is_ours=True),
    "ours base": Variant("ours", "make_base", has_adapters=False),
    "mm + addmm": Variant("segments"),
    "vllm": Variant("vllm_kernels", is_peer=True),
    "sglang csgmv": Variant("sglang_csgmv", is_peer=True),
    "sglang v2": Variant("sglang_v2", is_peer=True),
    "peft eager": Variant("peft_mixed", is_eager=True),
}
BASE = "cublas"


def make(name: str, case: SiteCase) -> Launch:
    """Raises VariantAbsent, and whatever the variant raises."""
    variant = VARIANTS[name]
    module = import_module(f"benchmarks.gpu.variants.{variant.module}")
    launch: Launch = getattr(module, variant.function)(case)
    return launch
