"""Rows of a step whose adapters change more than low-rank updates do.

Nothing here costs a step without such adapters anything: hooks are put on the model for those
steps that need them and taken off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polygraft.adapters.base_changes import TableChange

NormRows = tuple[int, int, Mapping[str, Tensor]]  # rows [start, end), parameters by name


@dataclass(frozen=True, slots=True)
class Affine:
    """gain, offset: [out_features of the site] float32; no gain is 1."""

    gain: Tensor | None
    offset: Tensor

    def apply_(self, y: Tensor) -> None:
        """y: [rows, out_features], changed in place, computed in float32."""
        if self.gain is None:
            y.copy_(y.float() + self.offset)
        else:
            y.copy_(torch.addcmul(self.offset, y.float(), self.gain))


@dataclass(frozen=True, slots=True)
class PlacedChanges:
    """What one resident version changes besides the low-rank updates in the pool."""

    affine: Mapping[int, Affine] = field(default_factory=dict)  # by index of the site
    norms: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by name
    embedding: TableChange | None = None
    head: TableChange | None = None


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Rows [start, end) of the step, and logits [first_logit, end_logit), of one version."""

    start: int
    end: int
    first_logit: int
    end_logit: int
    changes: PlacedChanges


class AffineUpdate:
    """Gains and offsets of a step; comes before the low-rank updates of the same rows."""

    def __init__(self, changed: Sequence[ChangedRows]) -> None:
        self._changed = [rows for rows in changed if rows.changes.affine]

    def add_(self, site: int, x: Tensor, y: Tensor) -> None:
        """x is not looked at; y: [num_tokens, out_features], changed in place."""
        for rows in self._changed:
            affine = rows.changes.affine.get(site)
            if affine is not None:
                affine.apply_(y[rows.start : rows.end])


def joined(changed: Sequence[ChangedRows]) -> list[ChangedRows]:
    """Neighbours of one version as one: fewer, larger operations."""
    found: list[ChangedRows] = []
    for rows in changed:
        last = found[-1] if found else None
        if last and last.changes is rows.changes and last.end == rows.start:
            has_logits = rows.first_logit < rows.end_logit
            is_first = last.first_logit == last.end_logit
            found[-1] = replace(
                last,
                end=rows.end,
                first_logit=rows.first_logit if is_first else last.first_logit,
                end_logit=rows.end_logit if has_logits else last.end_logit,
            )
        else:
            found.append(rows)
    return found


def norm_rows(changed: Sequence[ChangedRows]) -> dict[str, list[NormRows]]:
    """By the name of the norm: rows with parameters of their own."""
    found: dict[str, list[NormRows]] = {}
    for rows in changed:
        for name, parameters in rows.changes.norms.items():
            found.setdefault(name, []).append((rows.start, rows.end, parameters))
    return found


def embed_(rows: Tensor, token_ids: Tensor, changed: Sequence[ChangedRows], scale: float) -> None:
    """Overwrite embedded rows [num_tokens, hidden_size] of those versions that change them.

    scale: what the base's embedding multiplies its rows with.
    """
    for each in changed:
        table = each.changes.embedding
        if table is not None:
            ids, own = token_ids[each.start : each.end], rows[each.start : each.end]
            _embed_(own, ids, table, scale)


def _embed_(rows: Tensor, ids: Tensor, table: TableChange, scale: float) -> None:
    if table.weight is not None:
        rows.copy_(table.weight[ids] * scale)
    if table.token_ids is not None and table.rows is not None:
        place = torch.searchsorted(table.token_ids, ids).clamp_max(len(table.token_ids) - 1)
        is_own = table.token_ids[place] == ids
        rows[is_own] = table.rows[place[is_own]] * scale
    if table.lora is not None:
        update = table.lora.lora_b[ids] @ table.lora.lora_a
        rows.add_(update, alpha=table.lora.scaling * scale)


def project_(logits: Tensor, hidden: Tensor, table: TableChange, bias: Tensor | None) -> None:
    """Change logits [rows, vocab_size] in place. hidden: [rows, hidden_size], the head's input;
    bias: the head's own."""
    if table.weight is not None:
        logits.copy_(torch.nn.functional.linear(hidden, table.weight, table.bias))
    elif table.bias is not None and bias is not None:
        logits.add_(table.bias - bias)
    if table.token_ids is not None and table.rows is not None:
        logits[:, table.token_ids] = hidden @ table.rows.t()
    if table.lora is not None:
        low = (hidden @ table.lora.lora_a.t()).mul_(table.lora.scaling)
        logits.addmm_(low, table.lora.lora_b.t())
    if table.offset is not None:
        logits.add_(table.offset)


@contextmanager
def changes_applied(
    head: nn.Module | None,
    norms: Mapping[str, nn.Module],
    changed: Sequence[ChangedRows],
    by_norm: Mapping[str, Sequence[NormRows]],
) -> Iterator[None]:
    """Head and norms of the model compute the changed rows as their adapters want them."""
    with ExitStack() as stack:
        if head is not None and any(rows.changes.head is not None for rows in changed):
            handle = head.register_forward_hook(partial(_after_head, changed))
            stack.callback(handle.remove)
        for name, own in by_norm.items():
            handle = norms[name].register_forward_hook(_AfterNorm(own))
            stack.callback(handle.remove)
        yield


def _after_head(
    changed: Sequence[ChangedRows], head: nn.Module, args: tuple[Tensor, ...], logits: Tensor
) -> None:
    """hidden: [1, num_logits, hidden_size]; logits: [1, num_logits, vocab_size]."""
    hidden = args[0].flatten(0, -2)
    flat = logits.flatten(0, -2)
    for rows in changed:
        if rows.changes.head is not None and rows.first_logit < rows.end_logit:
            own = slice(rows.first_logit, rows.end_logit)
            bias = getattr(head, "bias", None)
            project_(flat[own], hidden[own], rows.changes.head, bias)


class _AfterNorm:
    """Computes some rows of a norm's output again with their own parameters."""

    def __init__(self, changed: Sequence[NormRows]) -> None:
        self._changed = changed
        self._is_inside = False

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """x: [..., tokens, width]; the output is changed in place."""
        if self._is_inside:  # the calls below come here as well
            return
        self._is_inside = True
        try:
            x, flat = args[0].flatten(0, -2), output.flatten(0, -2)
            for start, end, parameters in self._changed:
                flat[start:end] = functional_call(norm, dict(parameters), (x[None, start:end],))[0]
        finally:
            self._is_inside = False
