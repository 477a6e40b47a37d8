"""Rows of a batch laid end to end in few sequences, instead of padded to the longest.

A packed step computes what the padded one does: positions restart with each row, no row sees
another (transformers builds the block-diagonal mask from the restarts), and no row's first token
is predicted from the row before. So a recipe may switch packing on and off.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from polygraft.trainer.collate import Collator
from polygraft.trainer.encode import IGNORED, Encoded
from polygraft.trainer.errors import RecipeError

if TYPE_CHECKING:
    from polygraft.trainer.prepare import Prepared

PROBE_LENGTHS = (7, 5)
TOLERANCE = 1e-3
"""Of logits in fp32, relative to the largest; in bf16 fifty times that."""


def training_collator(prepared: Prepared) -> Collator | PackingCollator:
    """What makes a training batch of rows, as the recipe says."""
    pad_id = prepared.base.eos_token_ids[0]
    data = prepared.config.data
    if not data.packing:
        return Collator(pad_id)
    assert data.max_length is not None
    return PackingCollator(pad_id, data.max_length)


class PackingCollator:
    """Batch of `input_ids`, `position_ids`, `labels`, each [sequences, longest <= capacity]."""

    def __init__(self, pad_id: int, capacity: int) -> None:
        self.pad_id = pad_id
        self.capacity = capacity

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        packed = [
            [rows[index] for index in bin_]
            for bin_ in best_fit([len(row.input_ids) for row in rows], self.capacity)
        ]
        width = max(sum(len(row.input_ids) for row in sequence) for sequence in packed)
        shape = len(packed), width
        input_ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        for number, sequence in enumerate(packed):
            start = 0
            for row in sequence:
                end = start + len(row.input_ids)
                input_ids[number, start:end] = torch.tensor(row.input_ids)
                labels[number, start + 1 : end] = torch.tensor(row.labels[1:])
                positions[number, start:end] = torch.arange(end - start)
                start = end
            positions[number, start:] = torch.arange(width - start)  # padding, on its own
        # Without a cache: with one, transformers takes the restarts for something else.
        return {
            "input_ids": input_ids,
            "position_ids": positions,
            "labels": labels,
            "use_cache": False,
        }


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in bins: longest first, each into the fullest bin that has room (best-fit
    decreasing, at most 11/9 of the fewest bins; Johnson et al. 1974)."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(free, (lengths[index], -1))
        if place < len(free):
            room, number = free.pop(place)
        else:
            room, number = max(capacity, lengths[index]), len(bins)
            bins.append([])
        bins[number].append(index)
        insort(free, (room - lengths[index], number))
    return bins


@torch.no_grad()
def check_packing(model: Any, vocabulary: int) -> None:
    """Raises RecipeError unless two packed rows get the logits that each gets alone.

    Asked of the model itself, whatever its architecture: recurrent layers and position biases by
    distance do not know where a row begins.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(vocabulary, (1, length), generator=generator).to(model.device)
        for length in PROBE_LENGTHS
    ]
    positions = torch.cat([torch.arange(length) for length in PROBE_LENGTHS])[None]
    was_training = model.training
    model.train(False)
    try:
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1)
        packed = model(
            input_ids=torch.cat(rows, dim=1),
            position_ids=positions.to(model.device),
            use_cache=False,
        ).logits
    except (TypeError, ValueError) as error:
        raise _refused(f"it takes no positions ({error})") from error
    finally:
        model.train(was_training)
    difference = float((packed - alone).abs().max() / alone.abs().max())
    limit = TOLERANCE if alone.dtype == torch.float32 else 50 * TOLERANCE
    if not difference <= limit:
        raise _refused(f"logits differ by {difference:.1%} from those of the rows alone")


def _refused(why: str) -> RecipeError:
    return RecipeError(
        f"this base does not keep packed rows apart: {why}.",
        item="data.packing",
        hint="Leave packing out.",
    )
