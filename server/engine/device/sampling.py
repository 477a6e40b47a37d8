"""Choosing tokens on the device, by the rules of `sampling.chooser` and `sampling.draw`.

Randomness is the host's: one number of [0, 1) for a row, made from its seed and position, so that a
draw depends on nothing else. Rows that need the host's tables (a constraint, log-probabilities) are
left to it, and counted by why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polygraft.server.engine.batch import SampleRows
from polygraft.server.engine.messages import Sampling
from polygraft.server.engine.sampling.chooser import LogitEdits
from polygraft.server.engine.sampling.draw import uniform
from polygraft.server.engine.sequence import Sequence as EngineSequence


@dataclass(frozen=True, slots=True)
class _Entries:
    """Elements [row, id] of the edited rows and a value for each."""

    rows: Tensor  # [n] int64
    ids: Tensor  # [n] int64
    values: Tensor  # [n] float32


@dataclass(frozen=True, slots=True)
class _Draws:
    """Of the drawn rows, one element each."""

    rows: Tensor  # [n] int64, among the edited rows
    temperature: Tensor  # float32
    top_k: Tensor  # int64; 0: no limit
    top_p: Tensor  # float64
    min_p: Tensor  # float32
    point: Tensor  # float64, of [0, 1)
    largest_k: int  # of top_k
    has_top_p: bool


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """What is to be done with the logits of a step, on the device.

    num_logits: rows. edited: those that are not simply the highest logit's; the tables below
    address them by their place among them. host: rows whose token the host chooses; why: counted.
    """

    num_logits: int
    host: frozenset[int]
    why: dict[str, int]
    edited: Tensor | None
    added: _Entries | None
    repeated: _Entries | None
    subtracted: _Entries | None
    draws: _Draws | None

    @classmethod
    def of(
        cls, samples: Sequence[SampleRows], vocab_size: int, device: torch.device
    ) -> SamplingTable:
        """Of the rows that a step samples, in their order."""
        table = _Maker(vocab_size, device)
        for group in samples:
            for offset in range(group.num_scored, group.count):
                table.add(group, offset)
        return table.made(sum(group.count for group in samples))


class _Maker:
    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._host: set[int] = set()
        self._why: Counter[str] = Counter()
        self._edited: list[int] = []
        self._added: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._repeated: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._subtracted: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._draws: list[tuple[int, Sampling, float]] = []

    def add(self, group: SampleRows, offset: int) -> None:
        """One row of a sequence."""
        sequence, row = group.chunk.sequence, group.first + offset
        ahead = offset - group.num_scored  # guessed tokens that stand before it
        why = _why_on_host(sequence, has_draft=bool(group.chunk.draft))
        self._why[why or "device"] += 1
        if why:
            self._host.add(row)
            return
        sampling = sequence.request.sampling
        edits = sequence.chooser.edits(ahead, self._vocab_size)
        if sampling.temperature == 0.0 and edits is None:
            return
        place = len(self._edited)
        self._edited.append(row)
        if edits is not None:
            self._edit(place, edits)
        if sampling.temperature != 0.0:
            position = len(sequence.token_ids) + ahead
            self._draws.append((place, sampling, uniform(sampling.seed, position)))

    def _edit(self, place: int, edits: LogitEdits) -> None:
        if len(edits.added_ids):
            self._added.append((place, edits.added_ids, edits.added))
        if len(edits.repeated_ids):
            penalties = np.full(len(edits.repeated_ids), edits.repetition, dtype=np.float32)
            self._repeated.append((place, edits.repeated_ids, penalties))
        if len(edits.subtracted_ids):
            self._subtracted.append((place, edits.subtracted_ids, edits.subtracted))

    def made(self, num_logits: int) -> SamplingTable:
        """The table, on the device."""
        return SamplingTable(
            num_logits,
            frozenset(self._host),
            dict(self._why),
            self._tensor(self._edited, np.int64) if self._edited else None,
            self._entries(self._added),
            self._entries(self._repeated),
            self._entries(self._subtracted),
            self._drawn() if self._draws else None,
        )

    def _drawn(self) -> _Draws:
        places, samplings, points = zip(*self._draws, strict=True)
        top_k = [sampling.top_k for sampling in samplings]
        top_p = [sampling.top_p for sampling in samplings]
        return _Draws(
            self._tensor(places, np.int64),
            self._tensor([sampling.temperature for sampling in samplings], np.float32),
            self._tensor(top_k, np.int64),
            self._tensor(top_p, np.float64),
            self._tensor([sampling.min_p for sampling in samplings], np.float32),
            self._tensor(points, np.float64),
            max(top_k),
            min(top_p) < 1.0,
        )

    def _entries(self, found: list[tuple[int, np.ndarray, np.ndarray]]) -> _Entries | None:
        if not found:
            return None
        places, ids, values = zip(*found, strict=True)
        rows = np.repeat(places, [len(each) for each in ids])
        return _Entries(
            self._tensor(rows, np.int64),
            self._tensor(np.concatenate(ids), np.int64),
            self._tensor(np.concatenate(values), np.float32),
        )

    def _tensor(self, values: Sequence[float] | np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=dtype)).to(self._device)


def _why_on_host(sequence: EngineSequence, *, has_draft: bool) -> str | None:
    request = sequence.request
    if request.constraint is not None:
        return "host_constraint"
    if request.top_logprobs is not None or request.wanted_logprobs:
        return "host_logprobs"
    if has_draft and sequence.chooser.has_penalties:
        return "host_draft"  # what is penalised depends on which guesses prove right
    return None


def choose(logits: Tensor, greedy: Tensor, table: SamplingTable) -> Tensor:
    """The token of every row [num_logits] int64; of `table.host` rows it means nothing.

    logits: [num_logits, vocab_size] float32, not changed; greedy: their argmax.
    """
    if table.edited is None:
        return greedy
    rows = logits.index_select(0, table.edited)
    if (added := table.added) is not None:
        rows.index_put_((added.rows, added.ids), added.values, accumulate=True)
    if (repeated := table.repeated) is not None:
        at = (repeated.rows, repeated.ids)
        old, penalty = rows[at], repeated.values
        rows[at] = torch.where(old < 0, old * penalty, old / penalty)
    if (subtracted := table.subtracted) is not None:
        at = (subtracted.rows, subtracted.ids)
        rows[at] = rows[at] - subtracted.values
    chosen = rows.argmax(-1)
    if (draws := table.draws) is not None:
        chosen[draws.rows] = draw(rows.index_select(0, draws.rows), draws)
    return greedy.index_copy(0, table.edited, chosen)


def draw(logits: Tensor, draws: _Draws) -> Tensor:
    """One token of each row by chance; see `sampling.draw`, whose rules these are."""
    top = logits.amax(-1, keepdim=True)
    weights = ((logits - top) / draws.temperature[:, None]).exp()
    if draws.largest_k:
        weights = weights.masked_fill(logits < _kth_largest(logits, draws), 0.0)
    if draws.has_top_p:
        weights = weights.masked_fill(~_is_top_p(weights, draws.top_p), 0.0)
    weights = weights.masked_fill(weights < draws.min_p[:, None], 0.0)
    sums = weights.double().cumsum(-1)
    total = sums[:, -1:].contiguous()
    found = torch.searchsorted(sums, draws.point[:, None] * total, right=True)[:, 0]
    # Rounding may put the point behind the last weight: then it is the last one that has any.
    return torch.minimum(found, torch.searchsorted(sums, total)[:, 0])


def _kth_largest(logits: Tensor, draws: _Draws) -> Tensor:
    """[rows, 1]: what a token must reach; -inf where there is no limit. Equals all stay."""
    count = min(draws.largest_k, logits.shape[1])
    largest = logits.topk(count, dim=-1).values
    index = draws.top_k.clamp(1, count) - 1
    least = largest.gather(1, index[:, None])
    return torch.where(draws.top_k[:, None] > 0, least, -torch.inf)


def _is_top_p(weights: Tensor, top_p: Tensor) -> Tensor:
    """A token stays while the mass of the heavier ones is below its part; the first always stays,
    and of equals those of the lowest ids."""
    ordered, ids = weights.sort(dim=-1, descending=True, stable=True)
    sums = ordered.double().cumsum(-1)
    before = sums - ordered.double()
    stays = before < top_p[:, None] * sums[:, -1:]
    stays[:, 0] = True
    stays |= top_p[:, None] >= 1.0
    return torch.zeros_like(stays).scatter(1, ids, stays)
