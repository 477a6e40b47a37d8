"""The second half of the gate: our computation against the model's own, before serving anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polygraft.adapters.base_model import refused_if_it_fails
from polygraft.adapters.errors import ModelRefused
from polygraft.kernels.linear import WeightFormat
from polygraft.server.engine.base import LoadedBase
from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.messages import EngineRequest, Stopping
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.step_logits import step_logits
from polygraft.server.engine.step_parts import StepRunner

_NUM_TOKENS = 32
_CHUNK = 11  # does not divide the token count: the last chunk is ragged, and one is a decode
# Norm-wise relative error. float32 differs by summation order only; bfloat16 has 8 bits.
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
_INT8_BOUND = 0.2  # two roundings to 8 bits per product; a wrong scale or a lost row is off by 1
_ROUNDINGS = 3
_MAX_BOUND = 0.5  # logits that have nothing to do with each other are off by 1.4


def _probe_tokens(base: LoadedBase) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    count = min(_NUM_TOKENS, base.context_length)
    ids: list[int] = torch.randint(base.geometry.vocab_size, (count,), generator=generator).tolist()
    return ids


@dataclass(frozen=True, slots=True)
class Reference:
    """Logits [vocab_size] behind the tokens of the check, and how far they may be missed."""

    logits: Tensor
    bound: float


@torch.inference_mode()
def reference_logits(base: LoadedBase, weight_format: WeightFormat) -> Reference:
    """What the unmodified model computes. Call before patching it.

    A mixture of experts may choose others after any rounding, and then rounds no worse in our
    order of sums than in its own; so the bound follows how far its logits move when its input is
    rounded the other way.
    """
    ids = torch.tensor([_probe_tokens(base)], device=base.device)
    with refused_if_it_fails("a forward pass of the model's own"):
        logits = _last(base.model(input_ids=ids, use_cache=False).logits)
        seeds = range(0 if base.dtype is torch.float32 else _ROUNDINGS)
        moved = [_error(_rounded_otherwise(base, ids, seed), logits) for seed in seeds]
    if not torch.isfinite(logits).all():
        raise ModelRefused(
            "the model's own logits are NaN or Inf.",
            item="weights",
            hint=f"The weights are damaged, or {base.dtype} is too narrow for them.",
        )
    least = _INT8_BOUND if weight_format == "int8" else _BOUNDS[base.dtype]
    bound = max(least, 2 * max(moved, default=0.0))
    return Reference(logits, min(bound, _MAX_BOUND))


def _rounded_otherwise(base: LoadedBase, ids: Tensor, seed: int) -> Tensor:
    """The model's own logits when each number of its input is off by one unit in the last place."""
    rows = base.model.get_input_embeddings()(ids)
    generator = torch.Generator().manual_seed(seed)
    signs = (torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1).to(rows.device)
    moved = (rows.float() * (1 + signs * torch.finfo(base.dtype).eps)).to(base.dtype)
    return _last(base.model(inputs_embeds=moved, use_cache=False).logits)


def _last(logits: Tensor) -> Tensor:
    return logits[0, -1].float().cpu()


def _error(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).norm() / reference.norm().clamp_min(1e-9))


def check_numbers(
    base: LoadedBase,
    runner: StepRunner,
    builder: BatchBuilder,
    block_size: int,
    reference: Reference,
) -> None:
    """Run the same tokens in chunks through the engine's path. Raises ModelRefused."""
    ids = _probe_tokens(base)
    request = EngineRequest("selfcheck", tuple(ids), Stopping(max_output_tokens=1))
    sequence = Sequence(request, block_size=block_size)
    sequence.add_blocks(list(range(sequence.num_blocks_missing(len(ids)))))
    logits = reference.logits[None]
    while sequence.num_remaining:
        last = sequence.num_remaining <= _CHUNK + 1
        size = 1 if sequence.num_remaining == 1 else min(_CHUNK, sequence.num_remaining - last)
        size = max(size, 1)
        with refused_if_it_fails("a chunked forward pass"):
            logits = step_logits(runner.run(builder.build([Chunk(sequence, size)]))).tensor.cpu()
        sequence.num_computed += size
    error = _error(logits[0], reference.logits)
    if not error <= reference.bound:
        raise ModelRefused(
            f"chunked logits differ from the model's own by {error:.2e} (norm-wise), more than "
            f"{reference.bound:.0e}: this architecture computes something the engine does not "
            f"reproduce, or {base.dtype} (or 8-bit weights) is too coarse for it.",
            item="architecture",
            found=f"{error:.2e}",
            allowed=f"<= {reference.bound:.0e}",
            hint="Try it with engine.dtype=float32 and engine.weight_format=packed.",
        )
