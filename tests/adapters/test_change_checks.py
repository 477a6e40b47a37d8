"""Tensors beside the low-rank pairs: announced, complete, of the right shape, finite."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import geometry_of, peft_model, save
from engine_support.architectures import SERVED
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.adapters.geometry import BaseGeometry, TableShape
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.weights import AdapterWeights, read_adapter

CONFIGS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [5, 3]},
    "norm": {"modules_to_save": ["model.norm"]},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}
# Which of its tensors a test breaks, by the end of its name.
OWN = {
    "dora": "0.self_attn.q_proj.lora_magnitude_vector",
    "lora_bias": "0.self_attn.q_proj.lora_B.bias",
    "tokens": "trainable_tokens_delta",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "embedding": "lora_embedding_B",
}


@pytest.fixture(scope="module")
def geometry() -> BaseGeometry:
    return geometry_of(SERVED["qwen3"].build())


def saved(feature: str, directory: Path) -> Path:
    config = LoraConfig(r=2, **{"target_modules": ["q_proj"], **CONFIGS[feature]})
    return save(peft_model("qwen3", config), directory, save_embedding_layers=False)


def broken(directory: Path, feature: str, change: Callable[[Tensor], Tensor | None]) -> Path:
    file = directory / WEIGHTS_FILE
    tensors = load_file(file)
    (name,) = [name for name in tensors if name.endswith(OWN[feature])]
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, file)
    return directory


def read(directory: Path, geometry: BaseGeometry, **limits: int) -> AdapterWeights:
    return read_adapter(directory, geometry, AdapterLimits(**limits), dtype=torch.float32)


@pytest.mark.parametrize("feature", CONFIGS)
def test_what_peft_saves_is_read_and_counted(
    feature: str, geometry: BaseGeometry, tmp_path: Path
) -> None:
    directory = saved(feature, tmp_path)
    weights = read(directory, geometry)
    tensors = load_file(directory / WEIGHTS_FILE)
    assert weights.changes
    assert weights.tensor_count == len(tensors)
    assert weights.changes.features == (
        {"dora": "use_dora", "tokens": "trainable_token_indices"}.get(
            feature, "modules_to_save" if feature in ("norm", "head") else feature
        ),
    )
    read_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert 0 <= weights.nbytes - read_bytes <= 16  # the ids of the tokens


@pytest.mark.parametrize("feature", CONFIGS)
def test_a_missing_tensor_is_refused(feature: str, geometry: BaseGeometry, tmp_path: Path) -> None:
    directory = broken(saved(feature, tmp_path), feature, lambda tensor: None)
    with pytest.raises(AdapterInvalid, match=r"is missing|no tensor of"):
        read(directory, geometry)


@pytest.mark.parametrize("feature", CONFIGS)
def test_another_shape_is_refused(feature: str, geometry: BaseGeometry, tmp_path: Path) -> None:
    directory = broken(saved(feature, tmp_path), feature, lambda tensor: tensor[:-1])
    with pytest.raises((AdapterIncompatible, AdapterInvalid), match="its shape is"):
        read(directory, geometry)


@pytest.mark.parametrize("feature", CONFIGS)
def test_values_that_are_not_finite_are_refused(
    feature: str, geometry: BaseGeometry, tmp_path: Path
) -> None:
    def poison(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = float("nan")
        return tensor

    directory = broken(saved(feature, tmp_path), feature, poison)
    with pytest.raises(AdapterInvalid, match="holds NaN or infinite values"):
        read(directory, geometry)


def test_trained_tokens_stand_in_the_order_of_their_ids(
    geometry: BaseGeometry, tmp_path: Path
) -> None:
    """The file has them in the order of the config."""
    directory = saved("tokens", tmp_path)
    (delta,) = [
        tensor
        for name, tensor in load_file(directory / WEIGHTS_FILE).items()
        if name.endswith(OWN["tokens"])
    ]
    table = read(directory, geometry).changes.embedding
    assert table is not None
    assert table.token_ids is not None
    assert table.rows is not None
    assert table.token_ids.tolist() == [3, 5]
    assert torch.equal(table.rows, delta[[1, 0]])


@pytest.mark.parametrize("indices", [[5, 5], [-1, 3], [3, 264]])
def test_token_ids_must_be_different_rows_of_the_embedding(
    indices: list[int], geometry: BaseGeometry, tmp_path: Path
) -> None:
    directory = saved("tokens", tmp_path)
    config = json.loads((directory / CONFIG_FILE).read_text())
    config["trainable_token_indices"] = indices
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(AdapterInvalid, match=r"trainable_token_indices: .*within the 264 rows"):
        read(directory, geometry)


def test_the_rank_on_an_embedding_is_limited(geometry: BaseGeometry, tmp_path: Path) -> None:
    directory = saved("embedding", tmp_path)
    assert read(directory, geometry, max_rank=2).changes.embedding is not None
    with pytest.raises(AdapterIncompatible, match="rank 2 is more than the limit of 1"):
        read(directory, geometry, max_rank=1)


@pytest.mark.parametrize("feature", ["embedding", "tokens"])
def test_an_embedding_that_does_more_than_look_up_takes_no_change(
    feature: str, geometry: BaseGeometry, tmp_path: Path
) -> None:
    other = replace(geometry, embedding=replace(geometry.embedding, is_plain=False))
    with pytest.raises(AdapterInvalid, match="does more than look rows up"):
        read(saved(feature, tmp_path), other)


def test_a_head_that_is_no_linear_layer_takes_no_change(
    geometry: BaseGeometry, tmp_path: Path
) -> None:
    other = replace(geometry, head=replace(geometry.head, is_plain=False))
    with pytest.raises(AdapterInvalid, match="a change of the output head lm_head"):
        read(saved("head", tmp_path), other)


def test_tokens_of_a_tied_head_with_a_bias_are_refused(
    geometry: BaseGeometry, tmp_path: Path
) -> None:
    """PEFT computes such a head without its bias."""
    other = replace(geometry, is_tied=True, head=replace(geometry.head, has_bias=True))
    with pytest.raises(AdapterInvalid, match="a change of the output head lm_head"):
        read(saved("tokens", tmp_path), other)


def test_a_base_without_a_head_has_none(geometry: BaseGeometry, tmp_path: Path) -> None:
    other = replace(geometry, head=TableShape())
    with pytest.raises(AdapterInvalid, match="a full weight"):
        read(saved("head", tmp_path), other)


ROLES = (
    "lora_magnitude_vector",
    "lora_B.bias",
    "base_layer.weight",
    "base_layer.bias",
    "token_adapter.trainable_tokens_delta",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_A.weight",
    "weight",
    "bias",
)
MODULES = (
    "model.embed_tokens",
    "lm_head",
    "model.norm",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.q_norm",
    "model.layers.9.mlp",
    "",
)
SETTINGS: tuple[tuple[str, object], ...] = (
    ("use_dora", True),
    ("use_dora", None),
    ("lora_bias", True),
    ("bias", "all"),
    ("bias", "lora_only"),
    ("trainable_token_indices", [1, 2]),
    ("trainable_token_indices", {"lm_head": [1]}),
    ("trainable_token_indices", {"embed_tokens": [2**62]}),
    ("modules_to_save", ["lm_head", "norm"]),
    ("modules_to_save", ["embed_tokens"]),
    ("modules_to_save", ["q_proj"]),
    ("r", 3),
)


def mutated(tensors: dict[str, Tensor], config: dict[str, Any], rng: random.Random) -> None:
    """One thing wrong, or several."""
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(tensors))
        tensor = tensors[name]
        match rng.randrange(6):
            case 0:
                del tensors[name]
            case 1:
                made = f"base_model.model.{rng.choice(MODULES)}.{rng.choice(ROLES)}"
                tensors[made] = tensor.clone()
            case 2:
                flat = tensor.flatten()
                tensors[name] = rng.choice((flat, flat[0], tensor[None], flat[:1])).clone()
            case 3:
                both = torch.cat([tensor.flatten(), tensor.flatten()])
                tensors[name] = (tensor.T if tensor.ndim == 2 else both).contiguous()
            case 4:
                tensor.view(-1)[-1] = rng.choice((float("inf"), 1e38, 0.0))
            case 5:
                key, value = rng.choice(SETTINGS)
                config[key] = value
        if not tensors:
            tensors[name] = tensor


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("feature", CONFIGS)
def test_mutations_are_refused_by_name_or_consumed_in_full(
    feature: str, seed: int, geometry: BaseGeometry, tmp_path: Path
) -> None:
    """Never another exception, never a tensor that is left out."""
    directory = saved(feature, tmp_path)
    original = load_file(directory / WEIGHTS_FILE)
    written = json.loads((directory / CONFIG_FILE).read_text())
    rng = random.Random(f"{feature} {seed}")
    refused = taken = 0
    for _ in range(60):
        tensors = {name: tensor.clone() for name, tensor in original.items()}
        config = dict(written)
        mutated(tensors, config, rng)
        save_file(tensors, directory / WEIGHTS_FILE)
        (directory / CONFIG_FILE).write_text(json.dumps(config))
        try:
            weights = read(directory, geometry)
        except (AdapterInvalid, AdapterIncompatible) as error:
            refused += bool(error.item) or "problems." in str(error)
        else:
            taken += 1
            assert weights.tensor_count == len(tensors)
            assert all(bool(tensor.isfinite().all()) for tensor in weights.changes.tensors())
    assert refused + taken == 60
    assert refused > 30
