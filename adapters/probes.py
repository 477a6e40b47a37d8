"""Recorded outputs of an adapter: what a server must compute when it applies it rightly.

The trainer writes them, a server compares its own numbers with them before it publishes the
adapter (`self_test.py`). One safetensors file; P probes, K the smaller of 32 and the vocabulary:

    input_ids          int32 [P, L]        0 behind the end of a probe
    input_len          int32 [P]           tokens of each probe, 8 at least
    top_ids            int32 [P, 8, K]     most likely tokens after each of the last 8, with the
    top_logprobs       float32 [P, 8, K]   adapter, and their log-probabilities,
    base_top_logprobs  float32 [P, 8, K]   and those of the same tokens without it
    greedy_ids         int32 [P, 16]       how greedy generation goes on
    greedy_margin      float32 [P, 16]     by how much each of these was ahead of the next one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import PROBES_FILE
from polygraft.adapters.safetensors_header import TensorEntry, read_header

MAX_PROBES = 8
MAX_PROBE_TOKENS = 256  # of one input; running requests must not feel a test
NUM_POSITIONS = 8
NUM_GREEDY = 16
MAX_TOP = 32

_DTYPES = {torch.int32: "I32", torch.float32: "F32"}
_ROUNDING = 1e-4  # by which probabilities may add up to more than 1


@dataclass(frozen=True, slots=True)
class Probes:
    """The tensors of the file, by their names there."""

    input_ids: Tensor
    input_len: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    base_top_logprobs: Tensor
    greedy_ids: Tensor
    greedy_margin: Tensor

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.input_ids.shape[0])

    def prompt(self, index: int) -> tuple[int, ...]:
        """The token ids of one probe."""
        return tuple(self.input_ids[index, : int(self.input_len[index])].tolist())

    def prompts(self) -> list[tuple[int, ...]]:
        """The token ids of all probes."""
        return [self.prompt(index) for index in range(self.count)]

    def wanted(self, index: int) -> tuple[tuple[int, ...], ...]:
        """The tokens of one probe whose log-probabilities are recorded, by position."""
        return tuple(tuple(ids) for ids in self.top_ids[index].tolist())


def write_probes(probes: Probes, path: Path) -> None:
    """Write the file; equal probes give equal bytes."""
    save_file(
        {field.name: getattr(probes, field.name).contiguous() for field in fields(probes)}, path
    )


def read_probes(path: Path, *, count: int, vocab_size: int) -> Probes:
    """The probes in a file of which the manifest says that there are `count`.

    Raises AdapterInvalid unless names, dtypes and shapes are those above, every id is one of the
    vocabulary, every number is finite, and the log-probabilities are those of a distribution.
    """
    names = [field.name for field in fields(Probes)]
    entries = {
        entry.name: entry
        for entry in read_header(path, PROBES_FILE, max_tensors=len(names), base=True)
    }
    if sorted(entries) != sorted(names):
        raise _bad(None, "the tensors", ", ".join(sorted(entries)), ", ".join(names))
    shapes = _shapes(entries["input_ids"], count, vocab_size)
    for name, (dtype, shape) in shapes.items():
        entry = entries[name]
        if (entry.dtype, entry.shape) != (_DTYPES[dtype], shape):
            found, allowed = (entry.dtype, entry.shape), (_DTYPES[dtype], shape)
            raise _bad(name, "dtype and shape", _text(*found), _text(*allowed))
    probes = Probes(**load_file(path))
    _check_values(probes, vocab_size)
    return probes


def _shapes(
    input_ids: TensorEntry, count: int, vocab_size: int
) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    width = input_ids.shape[1] if len(input_ids.shape) == 2 else 0
    if not 1 <= count <= MAX_PROBES:
        raise _bad("input_ids", "the number of probes", count, f"1 to {MAX_PROBES}")
    if not NUM_POSITIONS <= width <= MAX_PROBE_TOKENS:
        allowed = f"[{count}, {NUM_POSITIONS} to {MAX_PROBE_TOKENS}]"
        raise _bad("input_ids", "the shape", list(input_ids.shape), allowed)
    top = (count, NUM_POSITIONS, min(MAX_TOP, vocab_size))
    return {
        "input_ids": (torch.int32, (count, width)),
        "input_len": (torch.int32, (count,)),
        "top_ids": (torch.int32, top),
        "top_logprobs": (torch.float32, top),
        "base_top_logprobs": (torch.float32, top),
        "greedy_ids": (torch.int32, (count, NUM_GREEDY)),
        "greedy_margin": (torch.float32, (count, NUM_GREEDY)),
    }


def _check_values(probes: Probes, vocab_size: int) -> None:
    width = probes.input_ids.shape[1]
    for name, low, high in (
        ("input_len", NUM_POSITIONS, width),
        ("input_ids", 0, vocab_size - 1),
        ("top_ids", 0, vocab_size - 1),
        ("greedy_ids", 0, vocab_size - 1),
    ):
        values = getattr(probes, name)
        wrong = values[(values < low) | (values > high)]
        if len(wrong):
            raise _bad(name, "a value", int(wrong[0]), f"{low} to {high}")
    for name in ("top_logprobs", "base_top_logprobs", "greedy_margin"):
        values = getattr(probes, name)
        if not bool(torch.isfinite(values).all()):
            raise _bad(name, "a value", "NaN or Inf", "finite numbers")
    if bool((probes.greedy_margin < 0).any()):
        raise _bad("greedy_margin", "a value", float(probes.greedy_margin.min()), "0 or more")
    ordered = probes.top_ids.sort(dim=-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise _bad("top_ids", "the tokens of a position", "one twice", "different tokens")
    for name in ("top_logprobs", "base_top_logprobs"):
        most = float(getattr(probes, name).double().exp().sum(-1).max())
        if most > 1 + _ROUNDING:
            raise _bad(name, "the probability of a position", f"{most:.6g}", "1 in all")


def pad_inputs(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`input_ids` and `input_len` of these prompts."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
    return ids, lengths


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


def _bad(item: str | None, what: str, found: object, allowed: object) -> AdapterInvalid:
    return AdapterInvalid(
        f"{what} {found} is not valid (allowed: {allowed}).",
        file=PROBES_FILE,
        item=item,
        found=found,
        allowed=allowed,
        hint="Upload the file as the trainer wrote it, or train again.",
    )
