"""Pre-training of the base model: one run, made documents that never repeat.

Muon moves the matrices inside the layers and AdamW the rest. Rates warm up, stay flat, fall
linearly to zero, and in nano do so twice. The step can be compiled (2.6 times faster on two cores);
attention is written out ("eager"): torch's fused CPU attention is slow backwards at this size.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

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
from polygraft.trainer.base.state import Position, Stateful, load_state, save_state

SHARD = 12000
"""Documents that are made, encoded and sorted by length together."""

OnStep = Callable[[int, float, LlamaForCausalLM], None]
"""Called after each step with its number (from 1), its loss and the model."""


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
) -> Position:
    """Trains the model in place; returns the position at the end.

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
    start = load_state(state_file, parts) if state_file.exists() else Position()
    cpu_before = time.process_time() - start.cpu_seconds
    at = start
    for at, ids, weights in _batches(tokenizer, preset, seed, start):
        loss = step_loss(ids, weights)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if save_every and at.step % save_every == 0:
            cpu_seconds = time.process_time() - cpu_before
            save_state(state_file, parts, replace(at, cpu_seconds=cpu_seconds))
        on_step(at.step, loss.item(), model)
    model.train(False)
    return replace(at, cpu_seconds=time.process_time() - cpu_before)


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


def _boost(step: int, preset: Preset) -> Mapping[str, float]:
    if step < preset.copy_steps:
        return COPYING_FIRST
    return HARD_SKILLS if step >= preset.cycles[0] else {}


def _batches(
    tokenizer: PreTrainedTokenizerFast, preset: Preset, seed: int, at: Position
) -> Iterator[tuple[Position, Tensor, Tensor]]:
    """The batches from a position to the last step, each with the position behind it."""
    encoder = Encoder(tokenizer, preset)
    while at.step < preset.steps:
        rng = random.Random(f"encode/{seed}/{at.shard}")
        boost = _boost(at.shard_start, preset)
        made = list(documents(f"corpus/{seed}/{at.shard}", SHARD, boost=boost))
        shard = batches(encoder.encode(made, rng), preset.batch_tokens, rng)
        skipped = at.step - at.shard_start
        for ids, weights in islice(shard, skipped, skipped + preset.steps - at.step):
            at = replace(at, step=at.step + 1, tokens=at.tokens + int((ids != 0).sum()))
            yield at, ids, weights
        at = replace(at, shard=at.shard + 1, shard_start=at.step)
