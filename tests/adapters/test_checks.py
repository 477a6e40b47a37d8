"""Directories that PEFT saves with features we do not apply are refused by the feature's name."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import (
    HIDDEN,
    MODULE,
    geometry_of,
    lora_config,
    lora_tensors,
    peft_model,
    save,
    small_geometry,
    write_adapter,
)
from engine_support.architectures import SERVED
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from torch import Tensor

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE
from polygraft.adapters.geometry import KVShape
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.weights import AdapterWeights, read_adapter

A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"


def read(directory: Path, **limits: int) -> AdapterWeights:
    return read_adapter(directory, small_geometry(), AdapterLimits(**limits), dtype=torch.float32)


def read_tensors(directory: Path, tensors: dict[str, Tensor], **config: Any) -> AdapterWeights:
    return read(write_adapter(directory, lora_config(**config), tensors))


LEFTOVERS: dict[str, tuple[PeftConfig, dict[str, Any], str]] = {
    "dora": (
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        {"use_dora": False},
        "DoRA",
    ),
    "lora_bias": (
        LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True),
        {"lora_bias": False},
        "a bias of LoRA",
    ),
    "bias_all": (
        LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
        {"bias": "none"},
        "a copy of a base weight",
    ),
    "modules_to_save": (
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]),
        {"modules_to_save": None},
        "a full weight",
    ),
    "trainable_tokens": (
        LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3]),
        {"trainable_token_indices": None},
        "trainable tokens",
    ),
}


@pytest.mark.parametrize("feature", LEFTOVERS)
def test_their_tensors_are_refused_even_when_the_config_denies_them(
    feature: str, tmp_path: Path
) -> None:
    config, changes, name = LEFTOVERS[feature]
    directory = save(peft_model("qwen2", config), tmp_path)
    written = json.loads((directory / CONFIG_FILE).read_text())
    (directory / CONFIG_FILE).write_text(json.dumps({**written, **changes}))
    geometry = geometry_of(SERVED["qwen2"].build())
    with pytest.raises(AdapterInvalid, match=f"the file holds {name}"):
        read_adapter(directory, geometry, AdapterLimits(), dtype=torch.float32)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda k: k.removeprefix("base_model.model."), "does not start with base_model.model."),
        (lambda k: "model." + k, "does not start with base_model.model."),
        (lambda k: k.replace(".weight", ".default.weight"), "adapter's name left in its key"),
        (lambda k: k.replace("q_proj", "z_proj"), "has no linear module of this name. The nearest"),
        (lambda k: k.replace("model.layers", "model.model.layers"), "no linear module"),
        (lambda k: k.replace("self_attn.q_proj", "mlp.experts"), "train on attention only"),
        (lambda k: k.replace("lora_", "hada_"), "modules_to_save or a resized embedding"),
    ],
)
def test_keys_that_would_be_dropped_or_misread_are_refused(
    rename: Any, message: str, tmp_path: Path
) -> None:
    tensors = {rename(name): tensor for name, tensor in lora_tensors().items()}
    with pytest.raises((AdapterInvalid, AdapterIncompatible), match=re.escape(message)):
        read_tensors(tmp_path, tensors)


@pytest.mark.parametrize(("kept", "missing"), [(A, "lora_B.weight"), (B, "lora_A.weight")])
def test_half_a_pair_is_refused(kept: str, missing: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalid, match=f"the pair is incomplete: {missing}"):
        read_tensors(tmp_path, {kept: lora_tensors()[kept]})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({A: torch.ones(2, 9)}, AdapterIncompatible, "it maps 9 to 4 features"),
        ({B: torch.ones(5, 2)}, AdapterIncompatible, "it maps 8 to 5 features"),
        ({B: torch.ones(4, 3)}, AdapterInvalid, "with one rank"),
        ({A: torch.ones(2, 8, 1)}, AdapterInvalid, "with one rank"),
        ({A: torch.ones(16)}, AdapterInvalid, "with one rank"),
        (
            {A: torch.ones(3, 8), B: torch.ones(4, 3)},
            AdapterInvalid,
            "the tensor has rank 3, the config says 2",
        ),
    ],
)
def test_shapes_must_fit_the_module_and_each_other(
    changes: dict[str, Tensor], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read_tensors(tmp_path, {**lora_tensors(), **changes})


def test_a_rank_over_the_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, lora_config(r=5), lora_tensors(rank=5))
    assert read(directory, max_rank=5).max_rank == 5
    with pytest.raises(AdapterIncompatible, match="rank 5 is more than the limit of 4") as caught:
        read(directory, max_rank=4)
    assert (caught.value.found, caught.value.allowed) == (5, 4)


def test_a_lora_file_without_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalid, match="the file holds a soft prompt"):
        read_tensors(tmp_path, {"prompt_embeddings": torch.ones(2, HIDDEN)})


def test_thousands_of_wrong_names_are_refused_quickly_with_the_first_ones(tmp_path: Path) -> None:
    tensors = {}
    for index in range(5000):
        for leaf, tensor in (("A", torch.ones(1, 1)), ("B", torch.ones(1, 1))):
            name = f"base_model.model.model.layers.{index}.self_attn.x_proj.lora_{leaf}.weight"
            tensors[name] = tensor
    started = time.perf_counter()
    with pytest.raises(AdapterIncompatible, match="5000 problems") as caught:
        read_tensors(tmp_path, tensors, r=1)
    assert time.perf_counter() - started < 5
    assert str(caught.value).count("no linear module") == 20
    assert "and 4980 more" in str(caught.value)


def soft_prompt(**changes: Any) -> dict[str, Any]:
    settings = PromptTuningConfig(num_virtual_tokens=4, token_dim=HIDDEN, task_type="CAUSAL_LM")
    return {**settings.to_dict(), **changes}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"prompt_embeddings": torch.ones(5, HIDDEN)}, {}, "does not fit num_virtual_tokens = 4"),
        ({"prompt_embeddings": torch.ones(4)}, {}, "does not fit num_virtual_tokens"),
        ({"prompt_embeddings": torch.ones(4, 9)}, {"token_dim": 9}, "is not the hidden size 8"),
        ({"prompt_embeddings": torch.ones(4, 8)}, {"token_dim": 9}, "token_dim 9"),
        ({"prompt_embedding": torch.ones(4, 8)}, {}, "prompt_embeddings: the tensor is missing"),
        (
            {"prompt_embeddings": torch.ones(4, 8), **lora_tensors()},
            {},
            "the file holds LoRA beside a soft",
        ),
        (
            {"prompt_embeddings": torch.ones(32, 8)},
            {"num_virtual_tokens": 32},
            "32 virtual tokens are more than the limit of 31",  # half of a context of 64
        ),
    ],
)
def test_soft_prompts_must_fit(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((AdapterInvalid, AdapterIncompatible), match=message):
        read(write_adapter(tmp_path, soft_prompt(**config), tensors))


def prefix(**changes: Any) -> dict[str, Any]:
    """For `small_geometry` with keys and values of 2 heads of 3: one layer."""
    settings = PrefixTuningConfig(
        num_virtual_tokens=4, num_layers=1, num_attention_heads=2, token_dim=6
    )
    return {**settings.to_dict(), **changes}


@pytest.mark.parametrize(
    ("shape", "config", "kv", "message"),
    [
        ((5, 12), {}, [KVShape(2, 3, 3)], r"shape \[5, 12\] does not fit num_virtual_tokens = 4"),
        ((4, 13), {}, [KVShape(2, 3, 3)], r"width 13 is not 2 \* num_layers \* token_dim = 12"),
        ((4, 24), {"num_layers": 2}, [KVShape(2, 3, 3)], "num_layers = 2, but paper has 1"),
        ((4, 12), {}, [KVShape(3, 2, 2)], "2 key heads, 6 wide together; paper has 3, 6 wide"),
        ((4, 12), {}, [KVShape(2, 4, 4)], "2 key heads, 6 wide together; paper has 2, 8 wide"),
        ((4, 12), {"num_attention_heads": 4}, [], "token_dim 6 is not divisible by"),
        ((4, 12), {}, [KVShape(2, 3, 2)], "keys and values of different shapes"),
        ((4, 12), {}, [KVShape(2, 3, 3), KVShape(1, 6, 6)], "keys and values of different shapes"),
        ((32, 12), {"num_virtual_tokens": 32}, [KVShape(2, 3, 3)], "more than the limit of 31"),
        ((4, 12), {"num_layers": None}, [KVShape(2, 3, 3)], "num_layers: null is not valid"),
        ((4, 12), {"token_dim": 0}, [KVShape(2, 3, 3)], "token_dim: 0 is not valid"),
        ((4, 12), {"num_transformer_submodules": 2}, [], "num_transformer_submodules"),
        ((4, 12), {"encoder_dropout": 0.5}, [], "encoder_dropout"),
    ],
)
def test_prefixes_must_fit_every_layer(
    shape: tuple[int, int],
    config: dict[str, Any],
    kv: list[KVShape],
    message: str,
    tmp_path: Path,
) -> None:
    geometry = replace(small_geometry(), kv=tuple(kv))
    directory = write_adapter(tmp_path, prefix(**config), {"prompt_embeddings": torch.ones(shape)})
    with pytest.raises((AdapterInvalid, AdapterIncompatible), match=message):
        read_adapter(directory, geometry, AdapterLimits(), dtype=torch.float32)


def test_virtual_tokens_over_the_limit_are_refused(tmp_path: Path) -> None:
    tensors = {"prompt_embeddings": torch.ones(4, HIDDEN)}
    directory = write_adapter(tmp_path, soft_prompt(), tensors)
    assert read(directory).num_virtual_tokens == 4
    with pytest.raises(AdapterIncompatible, match="more than the limit of 3"):
        read(directory, max_virtual_tokens=3)


def test_prompts_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = {"prompt_embeddings": torch.full((4, HIDDEN), float("nan"))}
    with pytest.raises(AdapterInvalid, match="prompt_embeddings: holds NaN"):
        read(write_adapter(tmp_path, soft_prompt(), tensors))
