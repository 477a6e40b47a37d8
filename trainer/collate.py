"""Pads encoded rows to one batch, on the right whatever the tokenizer's side is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polygraft.trainer.encode import IGNORED, Encoded


class Collator:
    """Batch of `input_ids`, `attention_mask`, `labels`, each [rows, longest].

    Why right: PEFT puts virtual tokens in front of the row, so left padding would stand between
    them and the prompt and shift every position.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        width = max(len(row.input_ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            input_ids[index, :length] = torch.tensor(row.input_ids)
            labels[index, :length] = torch.tensor(row.labels)
            mask[index, :length] = 1
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
