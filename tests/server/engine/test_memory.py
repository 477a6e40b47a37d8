"""Weights lie in memory once: nothing of the checkpoint stays mapped or shared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from tiny_models import byte_tokenizer, save_base

from polygraft.kernels.linear import WeightFormat
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("architecture", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("weight_format", ["packed", "plain"])
def test_no_checkpoint_stays_mapped(
    architecture: str, weight_format: WeightFormat, tmp_path: Path
) -> None:
    model = SERVED[architecture].build().to(torch.bfloat16)
    base = save_base(tmp_path / "base", model, byte_tokenizer())
    config = EngineConfig(
        dtype="bfloat16", threads=1, kv_bytes=1 << 22, weight_format=weight_format
    )
    engine = Engine.load(base, config)
    assert str(base) not in Path("/proc/self/maps").read_text()
    head = engine.base.model.get_output_embeddings().weight
    assert head.shape[0] == VOCAB
    tied = engine.base.config.tie_word_embeddings
    assert (head.data_ptr() == engine.base.model.get_input_embeddings().weight.data_ptr()) == tied


def test_an_untied_head_is_kept_packed_only(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", SERVED["llama"].build(), byte_tokenizer())
    engine = Engine.load(base, EngineConfig(dtype="float32", threads=1, kv_bytes=1 << 22))
    head = engine.base.model.get_output_embeddings()
    assert head.linear.is_packed
    assert head.weight.shape == (VOCAB, 48)
    assert head.weight.untyped_storage().nbytes() == 4
