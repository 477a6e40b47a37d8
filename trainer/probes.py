"""Makes probes: what the trained adapter answers to prompts like those it was trained on.

Each prompt is computed alone and without padding, by PEFT's own forward pass, so that a server has
an independent witness to compare with (`adapters.self_test`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor

from polygraft.adapters.files import PROBES_FILE
from polygraft.adapters.probes import (
    MAX_PROBE_TOKENS,
    MAX_PROBES,
    MAX_TOP,
    NUM_GREEDY,
    NUM_POSITIONS,
    Probes,
    pad_inputs,
    write_probes,
)

if TYPE_CHECKING:
    from polygraft.trainer.prepare import Prepared


def save_probes(peft_model: PeftModel, prepared: Prepared, directory: Path) -> Probes:
    """Write the probes file for prompts of the validation rows."""
    # Rows of plain text ask nothing; then the text is what is answered.
    prompts = [row.prompt or row.input_ids[:-1] for row in prepared.validation]
    probes = make_probes(peft_model, prompts, context_length=prepared.geometry.context_length)
    write_probes(probes, directory / PROBES_FILE)
    return probes


def make_probes(
    peft_model: PeftModel, examples: Sequence[Sequence[int]], *, context_length: int
) -> Probes:
    """Probes of the adapter as it is now; `examples` are token ids of prompts.

    Of the examples those are taken that lie evenly in the list; of a long one its end.
    """
    config = peft_model.active_peft_config
    num_virtual = config.num_virtual_tokens if config.is_prompt_learning else 0
    longest = min(MAX_PROBE_TOKENS, context_length - num_virtual - NUM_GREEDY)
    prompts = choose_prompts(examples, longest=longest)
    recorded = [_record(peft_model, prompt) for prompt in prompts]
    input_ids, input_len = pad_inputs(prompts)
    return Probes(
        input_ids=input_ids,
        input_len=input_len,
        top_ids=torch.stack([one.top_ids for one in recorded]).int(),
        top_logprobs=torch.stack([one.top_logprobs for one in recorded]),
        base_top_logprobs=torch.stack([one.base_top_logprobs for one in recorded]),
        greedy_ids=torch.tensor([one.greedy_ids for one in recorded], dtype=torch.int32),
        greedy_margin=torch.tensor([one.greedy_margin for one in recorded]),
    )


def choose_prompts(examples: Sequence[Sequence[int]], *, longest: int) -> list[list[int]]:
    """At most `MAX_PROBES` different prompts, each of `NUM_POSITIONS` to `longest` tokens."""
    if longest < NUM_POSITIONS:
        raise ValueError(f"the context has room for {longest} tokens, {NUM_POSITIONS} are needed")
    different = list(dict.fromkeys(tuple(example) for example in examples if example))
    step = max(1, len(different) // MAX_PROBES)
    chosen = []
    for ids in different[::step][:MAX_PROBES]:
        times = -(-NUM_POSITIONS // len(ids))  # a short one is said again
        chosen.append(list(ids * times)[-longest:])
    return chosen


@dataclass(frozen=True)
class _Recorded:
    """One row of each tensor."""

    top_ids: Tensor
    top_logprobs: Tensor
    base_top_logprobs: Tensor
    greedy_ids: list[int]
    greedy_margin: list[float]


def _record(peft_model: PeftModel, prompt: Sequence[int]) -> _Recorded:
    with _answering(peft_model):
        last = _last_logprobs(peft_model, prompt)
        with peft_model.disable_adapter():
            base = _last_logprobs(peft_model, prompt)
        greedy_ids, greedy_margin = greedy(peft_model, prompt)
    top = last.topk(min(MAX_TOP, last.shape[-1]))
    return _Recorded(
        top.indices, top.values, base.gather(-1, top.indices), greedy_ids, greedy_margin
    )


def _last_logprobs(model: PeftModel, prompt: Sequence[int]) -> Tensor:
    """Log-probabilities [NUM_POSITIONS, vocab_size] after each of the last tokens."""
    logits: Tensor = model(input_ids=_row(model, prompt), use_cache=False).logits[0]
    return logits[-NUM_POSITIONS:].float().log_softmax(-1).cpu()


def greedy(model: PeftModel, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    """The most likely continuation, ends of sequence included, and the lead of each token."""
    ids, margins = list(prompt), []
    with _answering(model):
        for _ in range(NUM_GREEDY):
            logits = model(input_ids=_row(model, ids), use_cache=False).logits[0, -1].float()
            first, second = logits.topk(2).values.tolist()
            ids.append(int(logits.argmax()))
            margins.append(first - second)
    return ids[len(prompt) :], margins


def _row(model: PeftModel, ids: Sequence[int]) -> Tensor:
    device: Any = model.device
    return torch.tensor([list(ids)], device=device)


@contextmanager
def _answering(model: PeftModel) -> Iterator[None]:
    """Without dropout and gradients."""
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
