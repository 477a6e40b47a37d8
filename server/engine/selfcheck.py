"""The second half of the gate: our computation against the model's own, before serving anything."""

from __future__ import annotations

import torch
from torch import Tensor

from polygraft.adapters.base_model import refused_if_it_fails
from polygraft.adapters.errors import ModelRefused
from polygraft.server.engine.adapter_bank import AdapterBank
from polygraft.server.engine.base import LoadedBase
from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.messages import EngineRequest, Stopping
from polygraft.server.engine.model_runner import ModelRunner
from polygraft.server.engine.sequence import Sequence

_NUM_TOKENS = 32
_CHUNK = 11  # does not divide the token count: the last chunk is ragged, and one is a decode
# Norm-wise relative error. float32 differs by summation order only; bfloat16 has 8 bits.
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def _probe_tokens(base: LoadedBase) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    count = min(_NUM_TOKENS, base.context_length)
    ids: list[int] = torch.randint(base.geometry.vocab_size, (count,), generator=generator).tolist()
    return ids


@torch.inference_mode()
def reference_logits(base: LoadedBase) -> Tensor:
    """Logits [vocab_size] after random tokens, by the unmodified model. Call before patching it."""
    ids = torch.tensor([_probe_tokens(base)])
    with refused_if_it_fails("a forward pass of the model's own"):
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits
    last = logits[0, -1].float()
    if not torch.isfinite(last).all():
        raise ModelRefused(
            "the model's own logits are NaN or Inf.",
            item="weights",
            hint=f"The weights are damaged, or {base.dtype} is too narrow for them.",
        )
    return last


def check_numbers(
    base: LoadedBase, runner: ModelRunner, bank: AdapterBank, block_size: int, reference: Tensor
) -> None:
    """Run the same tokens in chunks through the engine's path. Raises ModelRefused."""
    ids = _probe_tokens(base)
    request = EngineRequest("selfcheck", tuple(ids), Stopping(max_output_tokens=1))
    sequence = Sequence(request, block_size=block_size)
    sequence.add_blocks(list(range(sequence.num_blocks_missing(len(ids)))))
    builder = BatchBuilder(bank, torch.device("cpu"))
    logits = reference
    while sequence.num_remaining:
        last = sequence.num_remaining <= _CHUNK + 1
        size = 1 if sequence.num_remaining == 1 else min(_CHUNK, sequence.num_remaining - last)
        size = max(size, 1)
        with refused_if_it_fails("a chunked forward pass"):
            logits = runner.run(builder.build([Chunk(sequence, size)]))
        sequence.num_computed += size
    error = float((logits[0] - reference).norm() / reference.norm().clamp_min(1e-9))
    bound = _BOUNDS[base.dtype]
    if not error <= bound:
        raise ModelRefused(
            f"chunked logits differ from the model's own by {error:.2e} (norm-wise), more than "
            f"{bound:.0e}: this architecture computes something the engine does not reproduce.",
            item="architecture",
            found=f"{error:.2e}",
            allowed=f"<= {bound:.0e}",
        )
