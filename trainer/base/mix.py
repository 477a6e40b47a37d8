"""The general mix: held-back examples of every skill, scored by exact match.

It says what the base can do, and after training an adapter what the base with it still can.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polygraft.trainer.base.general_rows import MixRow, mix_rows

__all__ = ["MixRow", "exact_match", "greedy", "mix_rows"]


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[MixRow]
) -> dict[str, float]:
    """Greedy exact match in percent per skill, and their mean as "mean"."""
    predictions = greedy(model, tokenizer, [row.prompt for row in rows])
    right: dict[str, list[bool]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        right.setdefault(row.skill, []).append(prediction == row.answer)
    scores = {skill: 100 * sum(hits) / len(hits) for skill, hits in right.items()}
    return {**scores, "mean": sum(scores.values()) / len(scores)}


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[str]:
    """Greedy answers to user messages, in their order."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    answers = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [texts[index] for index in chosen],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        width = batch["input_ids"].shape[1]
        made = model.generate(  # type: ignore[operator]
            **batch, do_sample=False, max_new_tokens=max_new_tokens
        )
        for index, text in zip(
            chosen, tokenizer.batch_decode(made[:, width:], skip_special_tokens=True), strict=True
        ):
            answers[index] = text
    return answers
