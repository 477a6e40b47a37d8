"""Greedy generation for scoring, on any causal LM, with or without a soft prompt.

A row of a batch gets the positions that it has alone: padding, then virtual tokens, then the
prompt. (PEFT's own `generate` puts the virtual tokens before the padding, which shifts them by the
padding of the batch and changes the logits.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt."""

    token_ids: list[int]
    text: str
    stopped: bool
    """Ended by an end token or a stop sequence, not by the length limit."""


@dataclass(frozen=True)
class GreedyGenerator:
    """Generates with one model; `soft_prompt` [virtual_tokens, hidden] goes in front of each row.

    `model` is a base or a LoRA-wrapped model; soft prompts are given apart, on the bare base.
    """

    model: Any  # PreTrainedModel, or PeftModel around one
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    stop_sequences: tuple[str, ...] = ()
    soft_prompt: torch.Tensor | None = None
    batch_rows: int = 32

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """One answer per prompt (token ids), in the order given."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Answer] = {}
        was_training = self.model.training
        self.model.train(False)
        try:
            for start in range(0, len(order), self.batch_rows):
                batch = order[start : start + self.batch_rows]
                answers.update(zip(batch, self._batch([prompts[i] for i in batch]), strict=True))
        finally:
            self.model.train(was_training)
        return [answers[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[Sequence[int]]) -> Iterable[Answer]:
        inputs = self._left_padded(prompts)
        output = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.eos_token_ids),
            pad_token_id=self.eos_token_ids[0],
        )
        prompt_width = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        return [self._answer(row[prompt_width:].tolist()) for row in output]

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        device = self.model.device
        virtual = 0 if self.soft_prompt is None else len(self.soft_prompt)
        width = max(map(len, prompts)) + virtual
        mask = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            mask[row, width - len(prompt) - virtual :] = 1
        ids = torch.full_like(mask, self.eos_token_ids[0])
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        if self.soft_prompt is None:
            return {"input_ids": ids, "attention_mask": mask}
        embeds = self.model.get_input_embeddings()(ids)  # [rows, width, hidden]
        for row, prompt in enumerate(prompts):
            first = width - len(prompt) - virtual
            embeds[row, first : first + virtual] = self.soft_prompt.to(embeds)
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def _answer(self, token_ids: list[int]) -> Answer:
        ends = [i for i, token in enumerate(token_ids) if token in self.eos_token_ids]
        kept = token_ids[: ends[0]] if ends else token_ids
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        cuts = [text.find(stop) for stop in self.stop_sequences if stop in text]
        if cuts:
            text = text[: min(cuts)]
        return Answer(kept, text, bool(ends or cuts))
