"""Paged attention against dense float64 attention, for every way of reading the cache."""

from __future__ import annotations

import pytest
import torch
from tolerances import relative_error
from torch import Tensor, nn
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from polygraft.kernels import attention
from polygraft.kernels.attention import (
    AttentionPlan,
    Context,
    DecodeRows,
    PagedAttention,
    PrefillRows,
)
from polygraft.kernels.reference import attention_reference

HEADS, KV_HEADS, DIM, VALUE_DIM = 6, 2, 16, 12
CELLS = 2048
SOFTCAP = 0.8  # near the size of the scores, so that it changes them


def _context(length: int, *, contiguous: bool, seed: int) -> Context:
    if contiguous:
        first = 7 + seed * 300
        return Context(torch.arange(first, first + length), first)
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.randperm(CELLS, generator=generator)[:length], None)


def _decode_rows(contexts: list[Context], rows: Tensor | None) -> DecodeRows:
    lengths = torch.tensor([c.length for c in contexts])
    cells = torch.stack(
        [torch.cat([c.cells, c.cells[:1].expand(int(lengths.max()) - c.length)]) for c in contexts]
    )
    return DecodeRows(rows, cells, lengths, contexts)


def _sinks(dtype: torch.dtype) -> Tensor:
    """One of them so large that it takes nearly all weight, as trained ones do."""
    return torch.tensor([-9.0, 0.0, 0.5, 1.0, 3.0, 12.0], dtype=dtype)


@pytest.mark.parametrize("softcap", [None, SOFTCAP])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [True, False])
def test_mixed_step_equals_dense_attention(
    softcap: float | None,
    with_sinks: bool,
    window: int | None,
    contiguous: bool,
    dtype: torch.dtype,
    padded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not padded:
        monkeypatch.setattr(attention, "LONG_CONTEXT", 0)  # forces the one-by-one path
    keys = torch.randn(KV_HEADS, CELLS, DIM, dtype=dtype)
    values = torch.randn(KV_HEADS, CELLS, VALUE_DIM, dtype=dtype)
    whole = _context(13, contiguous=contiguous, seed=0)
    later = _context(40, contiguous=contiguous, seed=1)
    decodes = [_context(n, contiguous=contiguous, seed=2 + i) for i, n in enumerate((5, 33, 21))]
    # rows: decode, whole prompt, decode, decode, a later chunk of 7
    spans = [(decodes[0], 0, 1), (whole, 1, 14), (decodes[1], 14, 15), (decodes[2], 15, 16)]
    spans.append((later, 16, 23))
    plan = AttentionPlan(
        [PrefillRows(1, 14, whole), PrefillRows(16, 23, later)],
        _decode_rows(decodes, torch.tensor([0, 14, 15])),
    )
    assert plan.decodes is not None
    assert plan.decodes.is_padded == padded
    q = torch.randn(23, HEADS, DIM, dtype=dtype)
    sinks = _sinks(dtype) if with_sinks else None
    out = PagedAttention()(
        plan, q, keys, values, scaling=0.3, window=window, softcap=softcap, sinks=sinks
    )
    for context, start, end in spans:
        k, v = keys[:, context.cells], values[:, context.cells]
        expected = attention_reference(
            q[start:end], k, v, scaling=0.3, window=window, softcap=softcap, sinks=sinks
        )
        bound = 2e-6 if dtype is torch.float32 else 2e-2
        assert relative_error(out[start:end], expected) <= bound


@pytest.mark.parametrize("feature", ["softcap", "sinks"])
@pytest.mark.parametrize("window", [None, 9])
def test_the_oracle_equals_transformers_eager_attention(feature: str, window: int | None) -> None:
    """gemma2's and gpt-oss's own code, in float64."""
    n, length = 7, 40
    q = torch.randn(n, HEADS, DIM, dtype=torch.float64)
    k = torch.randn(KV_HEADS, length, DIM, dtype=torch.float64)
    v = torch.randn(KV_HEADS, length, VALUE_DIM, dtype=torch.float64)
    position, key = torch.arange(length - n, length)[:, None], torch.arange(length)[None]
    seen = (key <= position) & (key > position - (window or length))
    mask = torch.zeros(n, length, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    module = nn.Module()
    module.num_key_value_groups = HEADS // KV_HEADS
    inputs = (module, q.transpose(0, 1)[None], k[None], v[None], mask[None, None])
    if feature == "softcap":
        theirs, _ = modeling_gemma2.eager_attention_forward(*inputs, scaling=0.3, softcap=SOFTCAP)
        ours = attention_reference(q, k, v, scaling=0.3, window=window, softcap=SOFTCAP)
        bound = 1e-6  # its softmax is in float32
    else:
        module.sinks = _sinks(torch.float64)
        theirs, _ = modeling_gpt_oss.eager_attention_forward(*inputs, scaling=0.3)
        ours = attention_reference(q, k, v, scaling=0.3, window=window, sinks=module.sinks)
        bound = 1e-12
    assert relative_error(theirs[0], ours) <= bound


def test_padding_never_reads_a_strangers_cell() -> None:
    keys = torch.full((KV_HEADS, CELLS, DIM), torch.nan)
    values = torch.full((KV_HEADS, CELLS, DIM), torch.nan)
    contexts = [_context(n, contiguous=True, seed=i) for i, n in enumerate((3, 17))]
    for context in contexts:
        keys[:, context.cells] = torch.randn(KV_HEADS, context.length, DIM)
        values[:, context.cells] = torch.randn(KV_HEADS, context.length, DIM)
    plan = AttentionPlan([], _decode_rows(contexts, None))
    out = PagedAttention()(
        plan, torch.randn(2, HEADS, DIM), keys, values, scaling=0.25, window=None
    )
    assert bool(torch.isfinite(out).all())
