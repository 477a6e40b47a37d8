"""The reader against PEFT itself: the same update of every module, on several architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_support.directories import (
    MODULE,
    geometry_of,
    lora_config,
    lora_tensors,
    peft_model,
    peft_warnings_ignored,
    save,
    small_geometry,
    write_adapter,
)
from engine_support.architectures import SERVED
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
)
from peft.tuners.lora import LoraLayer
from torch import Tensor

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.weights import AdapterWeights, read_adapter

LIMITS = AdapterLimits()
TASK = TaskType.CAUSAL_LM
ARCHITECTURES = ("llama", "gpt2", "qwen3", "phi3")


def updates(model: PeftModel) -> dict[str, Tensor]:
    """PEFT's own delta weight [out, in] of every adapted module, in float64."""
    model = model.double()
    deltas = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
            delta = layer.get_delta_weight("default")
            deltas[name] = delta.T if layer.fan_in_fan_out else delta
    return deltas


def assert_same_updates(weights: AdapterWeights, expected: dict[str, Tensor]) -> None:
    assert set(weights.modules) == set(expected)
    for name, module in weights.modules.items():
        product = module.lora_b.double() @ module.lora_a.double()
        torch.testing.assert_close(module.scaling * product, expected[name], rtol=1e-12, atol=1e-12)


def lora_configs(architecture: str) -> dict[str, LoraConfig]:
    names = SERVED[architecture].names
    both = [names.attention, names.mlp]
    return {
        "all_linear": LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type=TASK),
        "rslora": LoraConfig(r=8, lora_alpha=6, use_rslora=True, target_modules=both),
        "patterns": LoraConfig(
            r=16,
            lora_alpha=16,
            target_modules=both,
            rank_pattern={rf"(layers|h)\.1.*\.{names.mlp}": 2, names.mlp: 5},
            alpha_pattern={rf"^.*\.{names.attention}": 24},
            task_type=TASK,
        ),
        "rslora_patterns": LoraConfig(
            r=4,
            target_modules=both,
            use_rslora=True,
            rank_pattern={names.attention: 6},
            alpha_pattern={names.mlp: 3},
        ),
        "expression": LoraConfig(r=2, target_modules=rf".*\.{names.attention}", task_type=TASK),
        "one_layer": LoraConfig(r=2, target_modules=both, layers_to_transform=[1]),
        "gaussian": LoraConfig(r=2, target_modules=both, init_lora_weights="gaussian"),
        "orthogonal": LoraConfig(r=2, target_modules=both, init_lora_weights="orthogonal"),
        "excluded": LoraConfig(
            r=2, target_modules=both, exclude_modules=[names.mlp], lora_dropout=0.1
        ),
    }


@pytest.mark.parametrize("case", list(lora_configs("llama")))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_module_gets_the_update_that_peft_gives_it(
    architecture: str, case: str, tmp_path: Path
) -> None:
    model = peft_model(architecture, lora_configs(architecture)[case])
    geometry = geometry_of(SERVED[architecture].build())
    with peft_warnings_ignored():
        weights = read_adapter(save(model, tmp_path), geometry, LIMITS, dtype=torch.float32)
    assert_same_updates(weights, updates(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig])
def test_soft_prompt_rows_are_those_peft_puts_in_front(
    architecture: str, method: type[PromptTuningConfig | PromptEncoderConfig], tmp_path: Path
) -> None:
    model = peft_model(architecture, method(num_virtual_tokens=5, task_type=TASK))
    geometry = geometry_of(SERVED[architecture].build())
    weights = read_adapter(save(model, tmp_path), geometry, LIMITS, dtype=torch.float32)
    model.eval()
    expected = model.get_prompt(batch_size=1)[0]
    assert weights.kind == "soft_prompt"
    assert weights.prompt_embeddings is not None
    assert weights.num_virtual_tokens == 5
    torch.testing.assert_close(weights.prompt_embeddings, expected, rtol=0, atol=0)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_prefixes_are_the_cache_that_peft_begins_with(
    architecture: str, projection: bool, tmp_path: Path
) -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=projection, encoder_hidden_size=6, task_type=TASK
    )
    model = peft_model(architecture, config)
    geometry = geometry_of(SERVED[architecture].build())
    weights = read_adapter(save(model, tmp_path), geometry, LIMITS, dtype=torch.float32)
    model.eval()
    assert (weights.kind, weights.num_virtual_tokens, weights.tensor_count) == ("prefix", 5, 1)
    assert weights.prefix is not None
    assert weights.nbytes == weights.prefix.nbytes
    cache = model.get_prompt(batch_size=1)
    for layer, (keys, values) in enumerate(weights.prefix):
        torch.testing.assert_close(keys, cache.layers[layer].keys[0], rtol=0, atol=0)
        torch.testing.assert_close(values, cache.layers[layer].values[0], rtol=0, atol=0)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_that_rewrite_the_base_are_refused_until_converted(init: str, tmp_path: Path) -> None:
    """The converted adapter gives, on the untouched base, the weights that were trained."""
    untouched = SERVED["llama"].build()
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)
    with peft_warnings_ignored():
        model = PeftModel(SERVED["llama"].build(), config)
        model.peft_config["default"].init_lora_weights = True
        save(model, tmp_path / "initial")
        model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save(model, tmp_path / "raw")
    save(
        model,
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
    )
    geometry = geometry_of(untouched)
    with pytest.raises(AdapterInvalid, match=f'init_lora_weights: "{init}".*Convert'):
        read_adapter(tmp_path / "raw", geometry, LIMITS, dtype=torch.float32)
    weights = read_adapter(tmp_path / "converted", geometry, LIMITS, dtype=torch.float32)
    trained = model.merge_and_unload()
    for name, module in weights.modules.items():
        update = module.scaling * module.lora_b @ module.lora_a
        found = untouched.get_submodule(name).weight + update
        torch.testing.assert_close(found, trained.get_submodule(name).weight, rtol=0, atol=2e-5)


def test_alphas_that_peft_can_no_longer_tell_apart_are_refused(tmp_path: Path) -> None:
    """PEFT trains with the first match in the order given, but saves the patterns sorted."""
    config = lora_config(alpha_pattern={"q_proj": 8, "self_attn.q_proj": 16})
    with pytest.raises(AdapterInvalid, match=r"alpha_pattern: several patterns.* 8, 16"):
        read_adapter(write_adapter(tmp_path, config), small_geometry(), LIMITS, dtype=torch.float32)
    config = lora_config(alpha_pattern={"q_proj": 8, "self_attn.q_proj": 8})
    weights = read_adapter(
        write_adapter(tmp_path, config), small_geometry(), LIMITS, dtype=torch.float32
    )
    assert weights.modules[MODULE].scaling == 4.0


def test_weights_are_private_copies_in_the_serving_dtype(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        module = read_adapter(directory, small_geometry(), LIMITS, dtype=dtype).modules[MODULE]
        assert module.lora_a.dtype == module.lora_b.dtype == dtype
        assert module.scaling == 2.0
        expected = lora_tensors()[f"base_model.model.{MODULE}.lora_A.weight"].to(dtype)
        assert torch.equal(module.lora_a, expected)
        module.lora_a.zero_()  # would fail on a read-only map, and must not reach the file


def test_sizes_are_counted(tmp_path: Path) -> None:
    weights = read_adapter(write_adapter(tmp_path), small_geometry(), LIMITS, dtype=torch.float16)
    assert weights.max_rank == 2
    assert weights.num_virtual_tokens == 0
    assert weights.tensor_count == 2
    assert weights.nbytes == 2 * (2 * 8 + 4 * 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("leaf", ["lora_A", "lora_B"])
def test_values_that_are_not_finite_are_refused(value: float, leaf: str, tmp_path: Path) -> None:
    tensors = lora_tensors()
    name = f"base_model.model.{MODULE}.{leaf}.weight"
    tensors[name][1, 1] = value
    with pytest.raises(AdapterInvalid, match=rf"{leaf}.weight: holds NaN or infinite") as caught:
        read_adapter(
            write_adapter(tmp_path, tensors=tensors), small_geometry(), LIMITS, dtype=torch.float32
        )
    assert caught.value.file == "adapter_model.safetensors"
    assert caught.value.item == name


def test_values_that_overflow_in_the_serving_dtype_are_refused(tmp_path: Path) -> None:
    tensors = lora_tensors()
    tensors[f"base_model.model.{MODULE}.lora_A.weight"][0, 0] = 1e6
    directory = write_adapter(tmp_path, tensors=tensors)
    read_adapter(directory, small_geometry(), LIMITS, dtype=torch.bfloat16)
    with pytest.raises(AdapterInvalid, match=r"overflows torch\.float16"):
        read_adapter(directory, small_geometry(), LIMITS, dtype=torch.float16)


def test_a_scale_that_overflows_is_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, lora_config(lora_alpha=1e39))
    with pytest.raises(AdapterInvalid, match="scaling times weights"):
        read_adapter(directory, small_geometry(), LIMITS, dtype=torch.float32)


@pytest.mark.parametrize("zero", ["lora_A", "lora_B", "alpha"])
def test_a_lora_without_effect_is_refused_unless_allowed(zero: str, tmp_path: Path) -> None:
    tensors = lora_tensors()
    if zero != "alpha":
        tensors[f"base_model.model.{MODULE}.{zero}.weight"].zero_()
    config = lora_config(lora_alpha=0) if zero == "alpha" else lora_config()
    directory = write_adapter(tmp_path, config, tensors)
    with pytest.raises(AdapterInvalid) as caught:
        read_adapter(directory, small_geometry(), LIMITS, dtype=torch.float32)
    assert caught.value.code == "NO_EFFECT"
    weights = read_adapter(
        directory, small_geometry(), LIMITS, dtype=torch.float32, allow_no_effect=True
    )
    assert not weights.has_effect


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    tensors = {**lora_tensors(), **lora_tensors(module="model.layers.0.self_attn.k_proj")}
    tensors[f"base_model.model.{MODULE}.lora_A.weight"] = torch.ones(2, 9)
    with pytest.raises(AdapterIncompatible) as caught:
        read_adapter(
            write_adapter(tmp_path, tensors=tensors), small_geometry(), LIMITS, dtype=torch.float32
        )
    text = str(caught.value)
    assert text.startswith("2 problems.")
    assert "it maps 9 to 4 features" in text
    assert "k_proj: paper (PaperForCausalLM) has no linear module" in text
    assert f"The nearest is {MODULE}." in text
