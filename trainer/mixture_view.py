"""A mixture for eyes and files: counts per source, and every row as it is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.checked_data import CheckedData
from polygraft.trainer.config import RunConfig
from polygraft.trainer.data import rows_sha256
from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Part:
    """The rows that one source gives; `rate` and `cap` are None for the recipe's own data."""

    name: str
    available: int
    distinct: int
    rows: Sequence[Encoded]
    rate: float | None = None
    cap: int | None = None

    @property
    def tokens(self) -> int:
        """Of prompts and completions."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(row.supervised for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.name,
            "available": self.available,
            "cap": self.cap,
            "distinct": self.distinct,
            "rate": self.rate,
            "rows": len(self.rows),
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "sha256": rows_sha256(row.example for row in self.rows),
        }


def parts_of(config: RunConfig, data: CheckedData) -> list[Part]:
    """The recipe's own train rows, then each source of its mixture."""
    own = data.splits["train"]
    name = config.data.task or Path(str(config.data.train)).name
    parts = [Part(name, len(own), len(own), own)]
    for mixed in data.mixed:
        ingredient = mixed.ingredient
        parts.append(
            Part(
                ingredient.name,
                mixed.available,
                mixed.distinct,
                mixed.rows,
                ingredient.rate,
                ingredient.cap,
            )
        )
    return parts


def mixture_table(parts: Sequence[Part]) -> Table:
    """Sources down, then all of them."""
    from rich.table import Column, Table

    right: dict[str, Any] = {"justify": "right"}
    headings = ("there are", "cap", "x rate", "rows", "share", "tokens", "with loss")
    table = Table("source", *(Column(heading, **right) for heading in headings))
    total = sum(len(part.rows) for part in parts)
    for part in parts:
        table.add_row(
            part.name,
            str(part.available),
            "-" if part.cap is None else str(part.cap),
            "-" if part.rate is None else f"{part.rate:g}",
            str(len(part.rows)),
            f"{100 * len(part.rows) / total:.1f} %",
            str(part.tokens),
            str(part.supervised),
        )
    sums = (sum(p.tokens for p in parts), sum(p.supervised for p in parts))
    table.add_row("all", "", "", "", str(total), "100 %", *map(str, sums), style="bold")
    return table


def write_rows(parts: Sequence[Part], data: CheckedData, path: Path) -> None:
    """Every row with its source, as text: the prompt as the model reads it, and the completion.

    Raises RecipeError where the file cannot be written.
    """
    hidden = path.with_name(f".{path.name}.part")
    try:
        with hidden.open("w", encoding="utf-8") as file:
            for part in parts:
                for row in part.rows:
                    prompt = data.tokenizer.decode(row.prompt)
                    record = {
                        "source": part.name,
                        "id": row.example.id,
                        "prompt": prompt,
                        "completion": row.example.completion,
                    }
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        os.replace(hidden, path)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise RecipeError(
            f"cannot be written: {error.strerror}.", file=str(path), item="--out"
        ) from None
