"""Keeps the adapter of the best validation on disk, so that a resumed run has it too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from polygraft.trainer.evaluation import Evaluation


@dataclass
class BestCheckpoint:
    """The trainable tensors at the best evaluation so far, in `directory`."""

    directory: Path
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        record = self.directory / "best.json"
        if record.exists():
            self.evaluation = Evaluation(**json.loads(record.read_text()), answers=[])

    def offer(self, model: torch.nn.Module, evaluation: Evaluation) -> bool:
        """Keep the model's trainable tensors if the evaluation is the best; says whether."""
        if not evaluation.is_better_than(self.evaluation):
            return False
        self.evaluation = evaluation
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file(trainable_tensors(model), self.directory / "best.safetensors")
        record: dict[str, Any] = asdict(evaluation)
        del record["answers"]
        (self.directory / "best.json").write_text(json.dumps(record))
        return True

    def restore(self, model: torch.nn.Module) -> None:
        """Put the kept tensors back into the model."""
        kept = load_file(self.directory / "best.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(kept[name])


def trainable_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter that is trained, by name."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
