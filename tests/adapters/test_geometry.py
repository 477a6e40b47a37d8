"""The geometry says what PEFT saw: names and shapes of linear layers, the head told apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from adapter_support.directories import FINGERPRINT, geometry_of
from engine_support.architectures import SERVED, VOCAB
from torch import nn
from transformers.pytorch_utils import Conv1D

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.geometry import describe_base
from polygraft.adapters.limits import AdapterLimits


@pytest.mark.parametrize("architecture", SERVED)
def test_every_linear_layer_is_described(architecture: str) -> None:
    model = SERVED[architecture].build()
    geometry = geometry_of(model)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    assert set(geometry.modules) == linear
    heads = [n for n, shape in geometry.modules.items() if shape.kind == "lm_head"]
    assert [model.get_submodule(n) for n in heads] == [model.get_output_embeddings()]
    for name, shape in geometry.modules.items():
        if shape.kind == "internal":
            assert name.endswith("router"), "it returns more than y = W x"
            continue
        with torch.no_grad():
            output = model.get_submodule(name)(torch.zeros(1, shape.in_features))
        assert output.shape == (1, shape.out_features)
    assert (geometry.num_layers, geometry.vocab_size) == (2, VOCAB)
    assert geometry.hidden_size == model.get_input_embeddings()(torch.tensor([1])).shape[-1]
    assert geometry.context_length == 256
    assert geometry.dtype == "float32"
    assert geometry.torch_dtype is torch.float32


def test_the_serving_dtype_is_that_of_the_weights() -> None:
    geometry = geometry_of(SERVED["llama"].build().to(torch.bfloat16))
    assert geometry.torch_dtype is torch.bfloat16


def test_a_base_without_a_context_length_is_refused() -> None:
    model = SERVED["llama"].build()
    config = SimpleNamespace(num_hidden_layers=2, vocab_size=VOCAB)
    config.get_text_config = lambda: config
    with pytest.raises(InvalidRequest, match="names no context length") as caught:
        describe_base(model, config, name="x", fingerprint=FINGERPRINT)  # type: ignore[arg-type]
    assert caught.value.code == "MODEL_REFUSED"


def test_limits_must_be_positive() -> None:
    assert AdapterLimits().max_rank == 256
    with pytest.raises(ValueError, match="max_rank = 0"):
        AdapterLimits(max_rank=0)
