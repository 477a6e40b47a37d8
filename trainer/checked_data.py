"""The rows of a recipe, read, mixed, encoded and checked: all that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polygraft.trainer.checks import Checked, check_rows
from polygraft.trainer.config import Data, RunConfig
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded, encode_examples
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.mixture import Mixed, mix
from polygraft.trainer.source import Source, build_recipe, load_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 2048
"""Tokens of a row where the recipe sets no limit and the base has more positions."""


@dataclass(frozen=True)
class CheckedData:
    """Rows that passed every check."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    splits: dict[str, list[Encoded]]
    """Of the data section itself, in the order train, validation, test."""
    mixed: list[Mixed]
    notes: list[str]

    @property
    def train(self) -> list[Encoded]:
        """Everything that is trained on."""
        return self.splits["train"] + [row for part in self.mixed for row in part.rows]


def check_data(config: RunConfig) -> CheckedData:
    """Load and check the data of a recipe. Raises RecipeError and DataError."""
    from polygraft.trainer.frozen_base import load_tokenizer

    source = load_source(config.data)
    tokenizer = load_tokenizer(config.base.path)
    data = config.data.model_copy(update={"max_length": _max_length(config)})
    checked = {
        name: _checked(name, rows, source, tokenizer, data)
        for name, rows in source.splits.named().items()
    }
    held_out = checked["validation"].rows + checked["test"].rows
    mixed, notes = mix(data, config.seed, tokenizer, held_out)
    warnings = [warning for part in checked.values() for warning in part.warnings]
    splits = {name: part.rows for name, part in checked.items()}
    kept = {name: [row.example for row in rows] for name, rows in splits.items()}
    assert data.max_length is not None
    return CheckedData(
        source=source.with_rows(**kept),
        tokenizer=tokenizer,
        max_length=data.max_length,
        splits=splits,
        mixed=mixed,
        notes=[*source.notes, *warnings, *notes],
    )


def _checked(
    name: str,
    rows: Sequence[Example],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
) -> Checked:
    assert data.max_length is not None
    encoded = encode_examples(rows, build_recipe(source.prompt, tokenizer), tokenizer)
    return check_rows(name, encoded, data.max_length, data.on_overflow)


def _max_length(config: RunConfig) -> int:
    """Tokens a row may have: a soft prompt in front of it must fit the base's positions too."""
    from polygraft.trainer.frozen_base import read_context_length

    virtual: int = getattr(config.method, "virtual_tokens", 0)
    window = read_context_length(config.base.path)
    wanted = config.data.max_length
    if wanted is None:
        return DEFAULT_MAX_LENGTH if window is None else min(window - virtual, DEFAULT_MAX_LENGTH)
    if window is not None and wanted + virtual > window:
        raise RecipeError(
            f"rows of up to {wanted} tokens and {virtual} virtual tokens do not fit the base's "
            f"context of {window}.",
            item="data.max_length",
            hint=f"Set it to at most {window - virtual}, or leave it out.",
        )
    return wanted
