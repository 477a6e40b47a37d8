"""What is written as GGUF reads back, by a reader of its own, as the model that it was."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.models import MODELS, prepare_model
from benchmarks.peers.gguf import write_gguf
from benchmarks.peers.gguf_model import write_adapter, write_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SCALARS = {4: "<I", 5: "<i", 6: "<f"}
ITEM_BYTES = {0: 4, 30: 2}


@dataclass
class GgufReader:
    """Follows ggml/include/gguf.h of llama.cpp, for the types that are in use."""

    data: bytes
    at: int = 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            item = self.take("<I")
            return [self.value(item) for _ in range(self.take("<Q"))]
        return self.take(SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = GgufReader(path.read_bytes())
    assert reader.take("4s") == b"GGUF"
    assert reader.take("<I") == 3
    num_tensors, num_fields = reader.take("<Q"), reader.take("<Q")
    fields = {reader.string(): reader.value(reader.take("<I")) for _ in range(num_fields)}
    listed = []
    for _ in range(num_tensors):
        name, num_dims = reader.string(), reader.take("<I")
        shape = [reader.take("<Q") for _ in range(num_dims)]
        listed.append((name, shape[::-1], reader.take("<I"), reader.take("<Q")))
    start = -(-reader.at // 32) * 32
    tensors = {}
    for name, shape, kind, offset in listed:
        assert offset % 32 == 0
        size = int(np.prod(shape)) * ITEM_BYTES[kind]
        raw = reader.data[start + offset :][:size]
        bits = np.frombuffer(raw, "<u4" if kind == 0 else "<u2").astype("<u4")
        tensors[name] = (bits if kind == 0 else bits << 16).view("<f4").reshape(shape)
    return fields, tensors


def test_fields_and_tensors_read_back(tmp_path: Path) -> None:
    fields = {"a": 7, "b": 0.5, "c": "ö", "d": ["x", "yy"], "e": [1, -1], "f": []}
    tensors = {"odd": torch.arange(5, dtype=torch.float32), "half": torch.ones(3, 2).bfloat16()}
    write_gguf(tmp_path / "x.gguf", fields, tensors)
    read_fields, read_tensors = read_gguf(tmp_path / "x.gguf")
    assert read_fields == fields
    assert read_tensors["odd"].tolist() == [0, 1, 2, 3, 4]
    assert read_tensors["half"].tolist() == [[1, 1]] * 3


def test_a_dtype_that_is_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_gguf(tmp_path / "x.gguf", {}, {"x": torch.ones(1, dtype=torch.float64)})


def test_a_model_keeps_every_weight_and_the_numbers_that_shape_it(tmp_path: Path) -> None:
    base, _ = prepare_model("tiny", 2, dtype="float32", seed=0)
    write_model(base, tmp_path / "base.gguf")
    fields, tensors = read_gguf(tmp_path / "base.gguf")
    config = MODELS["tiny"]
    weights = load_file(base / "model.safetensors")
    assert fields["llama.block_count"] == config["num_hidden_layers"]
    assert fields["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert fields["llama.rope.freq_base"] == 10000.0
    assert len(fields["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert len(set(fields["tokenizer.ggml.tokens"])) == config["vocab_size"]
    assert len(tensors) == len(weights)
    np.testing.assert_array_equal(
        tensors["token_embd.weight"], weights["model.embed_tokens.weight"].numpy()
    )
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"].numpy()
    )


def test_attention_scores_with_neighbours_rotated_equal_those_of_transformers(
    tmp_path: Path,
) -> None:
    base, _ = prepare_model("tiny", 2, dtype="float32", seed=0)
    write_model(base, tmp_path / "base.gguf")
    _, tensors = read_gguf(tmp_path / "base.gguf")
    model = AutoModelForCausalLM.from_pretrained(base)
    hidden = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6)
    heads = {"q": 4, "k": 2}

    attention = model.model.layers[0].self_attn
    q = attention.q_proj(hidden).view(1, 6, 4, 32).transpose(1, 2)
    k = attention.k_proj(hidden).view(1, 6, 2, 32).transpose(1, 2)
    cos, sin = model.model.rotary_emb(hidden, positions[None])
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    expected = q[0, :2] @ k[0, :1].transpose(1, 2)  # the first group's heads

    def rotated(part: str) -> np.ndarray:
        rows = hidden[0].numpy() @ tensors[f"blk.0.attn_{part}.weight"].T
        pairs = rows.reshape(6, heads[part], 16, 2) @ np.array([[1], [1j]])
        angles = positions.numpy()[:, None] / 10000.0 ** (np.arange(16) / 16)
        return (pairs[..., 0] * np.exp(1j * angles)[:, None]).transpose(1, 0, 2)

    scores = (rotated("q")[:2] @ rotated("k")[:1].conj().transpose(0, 2, 1)).real
    np.testing.assert_allclose(scores, expected.detach().numpy(), atol=1e-4)


def test_an_adapter_changes_the_same_rows_as_in_peft(tmp_path: Path) -> None:
    base, (_, folder) = prepare_model("tiny", 2, dtype="float32", seed=0)
    write_model(base, tmp_path / "base.gguf")
    write_adapter(folder, base, tmp_path / "adapter.gguf")
    _, weights = read_gguf(tmp_path / "base.gguf")
    fields, tensors = read_gguf(tmp_path / "adapter.gguf")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert fields["adapter.lora.alpha"] == config["lora_alpha"] == 32
    assert {name.rpartition(".")[0] for name in tensors} <= weights.keys()
    assert len(tensors) == 2 * 2 * 4  # A and B of q, k, v, o in two layers

    # The converted product is the original one with its rows in the order of the converted base.
    lora = load_file(folder / "adapter_model.safetensors")
    original = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    product = (lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]).numpy()
    name = "blk.0.attn_q.weight"
    rows = [original.numpy().tolist().index(row) for row in weights[name].tolist()]
    assert rows != sorted(rows)
    made = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
    np.testing.assert_allclose(made, product[rows], rtol=1e-5, atol=1e-6)


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    base, _ = prepare_model("tiny", 2, dtype="float32", seed=0)
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (tmp_path / "model.safetensors").symlink_to(base / "model.safetensors")
    with pytest.raises(ValueError, match="gpt2 is not converted"):
        write_model(tmp_path, tmp_path / "x.gguf")
