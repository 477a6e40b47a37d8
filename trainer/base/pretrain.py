"""Pre-training of the base model: one run, made documents that never repeat.

Muon moves the matrices inside the layers and AdamW the rest. Rates warm up, stay flat, fall
linearly to zero, and in nano do so twice. The step can be compiled (2.6 times faster on two cores);
attention is written out ("eager"): torch's fused CPU attention is slow backwards at this size.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from polygraft.trainer.base.corpus import COPYING_FIRST, HARD_SKILLS, documents
from polygraft.trainer.base.encoding import Encoder, batches
from polygraft.trainer.base.preset import Preset

SHARD = 12000
"""Documents that are made, encoded and sorted by length together."""

OnStep = Callable[[int, float, LlamaForCausalLM], None]
"""Called after each step with its number (from 1), its loss and the model."""


class Stateful(Protocol):
    """A part of a run whose state can be saved: the model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def new_model(preset: Preset, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.hidden,
        intermediate_size=preset.mlp,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        max_position_embeddings=preset.context,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager"
    )
    assert isinstance(model, LlamaForCausalLM)  # what its config names
    return model


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    preset: Preset,
    *,
    seed: int,
    compiled: bool,
    on_step: OnStep,
    state_file: Path,
    save_every: int = 0,
) -> int:
    """Trains the model in place; returns the number of tokens seen, padding not counted.

    With `save_every` > 0 the state of the run is written to `state_file` every so many steps. A
    state file that is already there is continued. Up to the step where the rates begin to fall, a
    state does not depend on the length of the cycle: it may be continued with another one, and at
    the end of a cycle with further cycles.
    """
    model.train()
    optimizers = _optimizers(model, preset)
    schedules = [
        LambdaLR(optimizer, lambda step: rate_factor(step, preset)) for optimizer in optimizers
    ]

    def loss_of(ids: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        targets = weights[:, 1:].flatten()
        return (losses * targets).sum() / targets.sum()

    step_loss = torch.compile(loss_of, dynamic=True) if compiled else loss_of
    parts: list[Stateful] = [model, *optimizers, *schedules]
    done, tokens = _load_state(state_file, parts) if state_file.exists() else (0, 0)
    remaining = islice(_batches(tokenizer, preset, seed), done, None)
    for step, (ids, weights) in enumerate(remaining, start=done + 1):
        loss = step_loss(ids, weights)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += int((ids != 0).sum())
        if save_every and step % save_every == 0:
            _save_state(state_file, parts, step, tokens)
        on_step(step, loss.item(), model)
    model.train(False)
    return tokens


def rate_factor(step: int, preset: Preset) -> float:
    """Learning rate at a step, counted from 0, as a share of the peak."""
    for steps in preset.cycles:
        if step < steps:
            decay_steps = max(1, int(preset.decay_share * steps))
            return min(1.0, (step + 1) / preset.warmup, (steps - step) / decay_steps)
        step -= steps
    return 0.0


def _optimizers(model: LlamaForCausalLM, preset: Preset) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=preset.hidden_lr,
            weight_decay=preset.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others,
            lr=preset.other_lr,
            betas=(0.9, 0.98),
            weight_decay=preset.weight_decay,
            fused=True,
        ),
    ]


def _save_state(file: Path, parts: Sequence[Stateful], step: int, tokens: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save({"step": step, "tokens": tokens, "parts": [p.state_dict() for p in parts]}, partial)
    partial.replace(file)


def _load_state(file: Path, parts: Sequence[Stateful]) -> tuple[int, int]:
    state = torch.load(file, weights_only=True)
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
        if isinstance(part, LambdaLR):  # the rate of the next step follows this run's schedule
            for group, peak, factor in zip(
                part.optimizer.param_groups, part.base_lrs, part.lr_lambdas, strict=True
            ):
                group["lr"] = peak * factor(part.last_epoch)
    return state["step"], state["tokens"]


def _boost(step: int, preset: Preset) -> Mapping[str, float]:
    if step < preset.copy_steps:
        return COPYING_FIRST
    return HARD_SKILLS if step >= preset.cycles[0] else {}


def _batches(
    tokenizer: PreTrainedTokenizerFast, preset: Preset, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Exactly `preset.steps` batches."""
    encoder = Encoder(tokenizer, preset)
    done = shard = 0
    while True:
        rng = random.Random(f"encode/{seed}/{shard}")
        made = list(documents(f"corpus/{seed}/{shard}", SHARD, boost=_boost(done, preset)))
        for batch in batches(encoder.encode(made, rng), preset.batch_tokens, rng):
            yield batch
            done += 1
            if done == preset.steps:
                return
        shard += 1
