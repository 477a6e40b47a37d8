"""Keeps every trained tensor in each checkpoint, so that a resumed run goes on exactly.

PEFT writes what it takes to answer: of p-tuning the embeddings, not the encoder that makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polygraft.trainer.best import trainable_tensors

FILE = "trained.safetensors"


class ExactCheckpoint(TrainerCallback):
    """Writes and reads `trained.safetensors` beside what Trainer keeps."""

    def __init__(self, checkpoints: Path, *, resumed: bool) -> None:
        self.checkpoints = checkpoints
        self.resumed = resumed

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Trainer calls this when a checkpoint is written."""
        folder = self._folder(state)
        folder.mkdir(parents=True, exist_ok=True)  # only the first of several processes has it
        save_file(trainable_tensors(model), folder / FILE)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Trainer calls this after it has loaded its checkpoint."""
        if not self.resumed:
            return
        path = self._folder(state) / FILE
        if not path.exists():  # of a version that knew only methods that PEFT keeps whole
            return
        kept = load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(kept[name])

    def _folder(self, state: TrainerState) -> Path:
        return self.checkpoints / f"checkpoint-{state.global_step}"
