"""Examples: one prompt-completion pair each, made from rows of a file or of a built-in task.

Knows no tokenizer and no split. A row becomes the variables of the prompt template (or the messages
of a chat) and the completion to learn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polygraft.trainer.digests import digest
from polygraft.trainer.errors import DataError
from polygraft.trainer.forms import PairsOf, Turn, field_pairs, text_of
from polygraft.trainer.rows import Row, read_rows


@dataclass(frozen=True)
class Example:
    """One prompt-completion pair before tokenising."""

    id: str
    group: str
    variables: Mapping[str, str]
    completion: str
    source: str
    """Where it was read, as `file:line`, for messages."""
    messages: tuple[Turn, ...] = ()
    """The chat so far, for the base's chat template; `variables` are empty then."""

    @property
    def asked(self) -> str:
        """Canonical JSON of what the model is asked; equal for equal prompts."""
        return _canonical(list(self.messages) or dict(self.variables))

    @property
    def content(self) -> str:
        """Canonical JSON of what the model sees; equal for exact duplicates."""
        if self.messages:
            return _canonical({"messages": list(self.messages), "completion": self.completion})
        return _canonical({"variables": dict(self.variables), "completion": self.completion})


def read_examples(
    path: str | Path, variables: Sequence[str], completion: str, group: str | None
) -> list[Example]:
    """Every example of a file whose rows have the named fields.

    `variables` and `completion` name the fields used; `group` the field of the group key (None:
    the row's content is its group). Raises DataError naming file, line and field.
    """
    return load_examples(path, field_pairs(variables, completion), group)


def load_examples(path: str | Path, pairs_of: PairsOf, group: str | None) -> list[Example]:
    """Every example that `pairs_of` makes of the rows of a file (see `rows.scan_rows`).

    Raises DataError naming file, line and field.
    """
    examples = []
    for line, row in read_rows(path):
        examples += examples_of(row, f"{path}:{line}", line, pairs_of, group)
    if not examples:
        raise DataError("holds no rows.", file=str(path))
    return examples


def examples_of(
    row: Row, source: str, line: int, pairs_of: PairsOf, group: str | None
) -> list[Example]:
    """The examples of one row: one, or one per answer of a chat, all of one group."""
    identity = str(row.get("id", line))
    key = text_of(row, group, source) if group else None
    pairs = [
        Example(identity, key or "", pair.variables, pair.completion, source, pair.messages)
        for pair in pairs_of(row, source)
    ]
    if key is None:
        key = digest("\n".join(pair.content for pair in pairs))
    names = [f"{identity}.{n}" for n in range(1, len(pairs) + 1)] if pairs[1:] else [identity]
    return [replace(pair, id=name, group=key) for name, pair in zip(names, pairs, strict=True)]


def task_examples(name: str, split: str, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The rows of a built-in task's split; they carry `variables`, `completion`, `id`, `group`."""
    return [
        Example(
            id=str(row["id"]),
            group=str(row["group"]),
            variables={key: str(value) for key, value in row["variables"].items()},
            completion=str(row["completion"]),
            source=f"builtin:{name}.{split}:{number}",
        )
        for number, row in enumerate(rows, 1)
    ]


def rows_sha256(examples: Iterable[Example]) -> str:
    """Identity of a split: sha256 over the canonical rows in order."""
    total = hashlib.sha256()
    for example in examples:
        total.update(example.content.encode() + b"\n")
    return total.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
