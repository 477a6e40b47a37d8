"""How the paged attention kernel cuts a step into tiles: a function of the model's shapes alone.

Reckoned and compiled (docs/kernels.md), not yet measured on a GPU. No Triton, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_DOT = 16  # rows of the smallest matrix instruction
_LEAST_SPLIT = 512  # positions; below that a part costs more to add than to compute
_MOST_SPLITS = 32


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer: query heads per key head, widths, and what changes the scores."""

    kv_heads: int
    group: int
    dim: int
    value_dim: int
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False


@dataclass(frozen=True, slots=True)
class PagedConfig:
    """One compiled form of the kernel. block_m: rows of a tile, each a query of one head; block_n:
    keys read at once; splits parts of `split` positions each (1: the context is not cut)."""

    block_m: int
    block_n: int
    splits: int = 1
    split: int = 0
    num_warps: int = 4
    num_stages: int = 2

    def rows(self, group: int) -> int:
        """Rows of the step in one tile, where `group` query heads share a key head."""
        return max(1, self.block_m // group)


def decode_config(group: int, dim: int, context: int) -> PagedConfig:
    """For steps of few rows for each sequence: the context is cut, so that a long one keeps the
    whole chip busy. The parts follow from the longest context there may be, never from a step."""
    split = max(_LEAST_SPLIT, power_of_two(-(-context // _MOST_SPLITS)))
    block_n, num_stages = (64, 3) if dim <= 128 else (32, 2)
    return PagedConfig(
        max(_LEAST_DOT, power_of_two(group)),
        block_n,
        -(-context // split),
        split,
        num_stages=num_stages,
    )


def prefill_config(group: int, dim: int) -> PagedConfig:
    """For steps with prefill chunks, and decodes among them."""
    # Why warps by width: the sums of a wide head do not fit the registers of four.
    block_n, num_warps = (64, 4) if dim <= 64 else (64, 8) if dim <= 128 else (32, 8)
    return PagedConfig(max(64, power_of_two(group)), block_n, num_warps=num_warps)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
