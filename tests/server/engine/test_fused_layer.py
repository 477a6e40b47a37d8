"""Which layers are fused, and that a fused model computes what transformers' layers compute."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from transformers.models.llama import modeling_llama
from transformers.models.ministral import modeling_ministral
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.seed_oss import modeling_seed_oss

from polygraft.server.engine.fused_layer import FAMILIES

MODULES: dict[str, Any] = {
    "Llama": modeling_llama,
    "Mistral": modeling_mistral,
    "Ministral": modeling_ministral,
    "Qwen2": modeling_qwen2,
    "Qwen3": modeling_qwen3,
    "SeedOss": modeling_seed_oss,
}


def source(family: str, part: str) -> str:
    """The code of a class's forward, without the family's name and without layout."""
    forward = inspect.getsource(getattr(MODULES[family], family + part).forward)
    return re.sub(r"\s+", " ", forward.replace(family, "X"))


def test_every_family_is_checked() -> None:
    assert {f"{family}DecoderLayer" for family in MODULES} == FAMILIES


@pytest.mark.parametrize("family", MODULES)
def test_the_code_that_is_replaced_is_the_code_that_was_read(family: str) -> None:
    """A transformers release that changes a layer must be looked at before it is fused."""
    assert source(family, "DecoderLayer") == source("Llama", "DecoderLayer")
    assert source(family, "RMSNorm") == source("Llama", "RMSNorm")
    assert "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))" in source(
        family, "MLP"
    )
    attention = source(family, "Attention")
    normed = family == "Qwen3"
    assert ("q_norm(self.q_proj" in attention) == normed
    assert attention.count("apply_rotary_pos_emb(query_states, key_states, cos, sin)") == 1
    calls = set(re.findall(r"self\.(\w+)\(", attention))
    assert calls == {"q_proj", "k_proj", "v_proj", "o_proj"} | (
        {"q_norm", "k_norm"} if normed else set()
    )
