"""Encoded rows for human eyes: which tokens carry loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polygraft.trainer.encode import IGNORED, Encoded

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

BEGIN, END = "⟦", "⟧"


@dataclass(frozen=True)
class RenderedRow:
    """One row, token by token."""

    source: str
    token_ids: list[int]
    pieces: list[str]
    supervised: list[bool]

    @property
    def count(self) -> str:
        """How many tokens carry loss."""
        return f"{sum(self.supervised)} of {len(self.supervised)} tokens supervised"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        tokens = zip(self.token_ids, self.pieces, self.supervised, strict=True)
        keys = ("id", "text", "supervised")
        return {
            "row": self.source,
            "tokens": [dict(zip(keys, token, strict=True)) for token in tokens],
        }

    def text(self) -> Text:
        """For a terminal. Brackets show what is learned where there is no colour."""
        from rich.text import Text

        text, before = Text(), False
        for number, (piece, learned) in enumerate(zip(self.pieces, self.supervised, strict=True)):
            if learned != before:
                text.append(BEGIN if learned else END, style="bold")
            shade = "underline" if number % 2 else ""  # shows where one token ends
            text.append(piece, style=f"{'green' if learned else 'dim'} {shade}".strip())
            before = learned
        return text.append(END, style="bold") if before else text


def rendered_rows(
    encoded: Mapping[str, Sequence[Encoded]], tokenizer: PreTrainedTokenizerBase
) -> list[RenderedRow]:
    """Every row of every split, in order."""
    return [
        RenderedRow(
            row.example.source,
            row.input_ids,
            [str(tokenizer.decode([token])) for token in row.input_ids],
            [label != IGNORED for label in row.labels],
        )
        for rows in encoded.values()
        for row in rows
    ]
