"""Train, validation and test: by the hash of a group key, with nothing standing in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace

from polygraft.trainer.config import Split
from polygraft.trainer.data import Example, rows_sha256
from polygraft.trainer.errors import DataError


@dataclass(frozen=True)
class Splits:
    """The three splits of a run. `test` is checked, but not scored before the end."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def named(self) -> dict[str, list[Example]]:
        """Split name to its rows, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def hashes(self) -> dict[str, str]:
        """Split name to the sha256 of its canonical rows."""
        return {name: rows_sha256(rows) for name, rows in self.named().items()}


def split_by_group(examples: Iterable[Example], split: Split) -> Splits:
    """Send each group to one split by `sha256(seed || group)`.

    Adding rows never moves the old ones: a group's split depends on its own key only.
    """
    parts = Splits([], [], [])
    named = parts.named()
    for example in examples:
        named[split_of(example.group, split)].append(example)
    refuse_empty(named)
    return parts


def split_of(group: str, split: Split) -> str:
    """The split that a group goes to: train, validation or test."""
    place = _fraction(split.seed, group)
    if place < split.test:
        return "test"
    return "validation" if place < split.test + split.validation else "train"


def refuse_empty(splits: Mapping[str, Sized]) -> None:
    """Raises DataError when a split got no rows."""
    empty = [name for name, rows in splits.items() if not rows]
    if empty:
        raise DataError(
            f"the {' and '.join(empty)} split got no rows: there are too few groups.",
            item="data.split",
            hint="Give more rows, larger fractions, or separate files.",
        )


def without_leaks(splits: Splits) -> tuple[Splits, int]:
    """Drop train rows that stand, word for word, in validation or test; and how many those were.

    Training on a row that is scored later would make the score a memory test.
    """
    held_out = {example.content for example in splits.validation + splits.test}
    kept = [example for example in splits.train if example.content not in held_out]
    return replace(splits, train=kept), len(splits.train) - len(kept)


def _fraction(seed: int, group: str) -> float:
    """A number in [0, 1) fixed by seed and group."""
    head = hashlib.sha256(f"{seed}\0{group}".encode()).digest()[:8]
    return int.from_bytes(head) / 2**64
