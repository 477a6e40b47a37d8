"""What cannot be exact is refused at start, by name, and what can be after a cap says which one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_support.architectures import REFUSED, SERVED, VOCAB
from engine_support.harness import Harness, random_prompts
from engine_support.peft_adapters import generate_alone
from peft import LoraConfig, TaskType, get_peft_model
from tiny_models import byte_tokenizer, save_base
from transformers import AutoModelForCausalLM, PreTrainedModel

from polygraft.adapters.errors import AdapterIncompatible, AdapterUnsupported, ModelRefused
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.masks import first_difference
from polygraft.server.engine.refusal import refuse_quantized


def load(model: PreTrainedModel, directory: Path, **settings: object) -> Engine:
    base = save_base(directory / "base", model, byte_tokenizer())
    config = {"dtype": "float32", "threads": 1, "kv_bytes": 1 << 22, **settings}
    return Engine.load(base, EngineConfig.model_validate(config))


def with_config(architecture: str, **changes: object) -> PreTrainedModel:
    """The random model of an architecture whose config was changed after building."""
    model = SERVED[architecture].build()
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    case = REFUSED[architecture]
    with pytest.raises(ModelRefused, match=case.reason):
        load(case.build(), tmp_path)


def longrope(original: int) -> dict[str, object]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": original,
    }


def test_rope_that_switches_for_the_whole_batch_is_refused_with_the_cap_that_helps(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelRefused, match=r"longrope.*engine\.max_context <= 64"):
        load(with_config("llama", rope_parameters=longrope(64)), tmp_path)


@pytest.mark.parametrize(
    "rope",
    [longrope(64), {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}],
    ids=["longrope", "dynamic"],
)
def test_capped_rope_is_exact_up_to_its_last_position(
    rope: dict[str, object], tmp_path: Path
) -> None:
    model = with_config("llama", rope_parameters=rope, max_position_embeddings=64 * 4)
    if rope["rope_type"] == "dynamic":
        model.config.max_position_embeddings = 64  # the context it never switches in
    base = save_base(tmp_path / "base", model, byte_tokenizer())
    harness = Harness(base, max_context=64, max_chunk=24)
    prompts = [[*p, *p][:52] for p in random_prompts(3, vocab=VOCAB, seed=1)]
    for i, prompt in enumerate(prompts):
        harness.submit(str(i), prompt, max_output_tokens=64 - len(prompt))
        harness.run_step()
    harness.run()
    for i, prompt in enumerate(prompts):
        [(token_ids, logits)] = generate_alone(base, None, [prompt], 64 - len(prompt))
        assert harness.answers[str(i)].token_ids == token_ids
        assert (torch.stack(harness.answers[str(i)].logits) - logits).abs().max() <= 1e-4


def test_chunked_attention_is_refused_beyond_its_first_chunk(tmp_path: Path) -> None:
    changes = {"attention_chunk_size": 100, "layer_types": ["chunked_attention"] * 2}
    with pytest.raises(ModelRefused, match=r"position 100 on.*engine\.max_context <= 100"):
        load(with_config("llama4", **changes), tmp_path / "whole")
    load(with_config("llama4", **changes), tmp_path / "capped", max_context=100)


def test_temperature_by_row_is_refused_where_rows_are_not_positions(tmp_path: Path) -> None:
    changes = {"attn_temperature_tuning": True, "floor_scale": 100}
    with pytest.raises(ModelRefused, match=r"attn_temperature_tuning.*< 100"):
        load(with_config("llama4", **changes), tmp_path / "long")
    with pytest.raises(ModelRefused, match="attn_temperature_tuning"):
        load(with_config("llama4", **changes), tmp_path / "steps", max_context=64)
    small = {"max_context": 64, "max_batch_tokens": 64}
    load(with_config("llama4", **changes), tmp_path / "short", **small)


def quantized(directory: Path, **quantization: object) -> Path:
    """A base whose config says that it is quantized."""
    base = save_base(directory / "base", SERVED["llama"].build(), byte_tokenizer())
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = quantization
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_a_checkpoint_whose_quantization_cannot_be_read_is_refused(tmp_path: Path) -> None:
    base = quantized(tmp_path, quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(ModelRefused, match="bitsandbytes"):
        Engine.load(base, EngineConfig())


def test_layers_that_stay_quantized_are_refused() -> None:
    config = SERVED["llama"].config()
    refuse_quantized(config)
    config.quantization_config = {"quant_method": "some"}
    with pytest.raises(ModelRefused, match=r"quantized \(some\)"):
        refuse_quantized(config)


@pytest.mark.parametrize(
    ("pattern", "window", "expected"),
    [
        (lambda b, h, q, k: k <= q, None, None),
        (lambda b, h, q, k: (k <= q) & (k > q - 7), 7, None),
        (lambda b, h, q, k: (k <= q) & (k > q - 7), None, 7),  # told of no window
        (lambda b, h, q, k: k <= q, 7, 7),  # told of a window that is none
        (lambda b, h, q, k: (k <= q) & (k > q - 8), 7, 7),
        (lambda b, h, q, k: (k <= q) & (k // 600 == q // 600), None, 600),
        (lambda b, h, q, k: (k <= q) & (k // 600 == q // 600), 600, 600),
        (lambda b, h, q, k: k <= q + 1, None, 0),  # sees ahead
        (lambda b, h, q, k: (k <= q) | (k < 5), None, 0),  # a bidirectional prefix
        (lambda b, h, q, k: (k <= q) & ((k < 4) | (k > q - 9)), None, 13),  # sinks and window
        (lambda b, h, q, k: (k <= q) & ((k < 4) | (k > q - 9)), 9, 9),
    ],
)
def test_masks_are_compared_over_the_whole_context(
    pattern: object, window: int | None, expected: int | None
) -> None:
    assert first_difference(pattern, window, 5000) == expected  # type: ignore[arg-type]


def test_a_window_as_long_as_the_context_is_none() -> None:
    def pattern(_b: object, _h: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k > q - 300)

    assert first_difference(pattern, None, 300) is None
    assert first_difference(pattern, None, 301) == 300


def save_lora(base: Path, directory: Path, **settings: object) -> Path:
    config = LoraConfig(r=4, task_type=TaskType.CAUSAL_LM, **settings)  # type: ignore[arg-type]
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(directory)
    return directory


def test_lora_on_experts_is_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", SERVED["mixtral"].build(), byte_tokenizer())
    directory = save_lora(
        base,
        tmp_path / "lora",
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj"],
    )
    with pytest.raises((AdapterUnsupported, AdapterIncompatible), match="target_parameters"):
        Harness(base).adapters.load("experts", directory)


def test_lora_on_a_router_that_is_more_than_a_linear_layer_is_refused_by_name(
    tmp_path: Path,
) -> None:
    base = save_base(tmp_path / "base", SERVED["llama4"].build(), byte_tokenizer())
    directory = save_lora(base, tmp_path / "lora", target_modules=["router"])
    with pytest.raises(AdapterUnsupported, match=r"router.*every token passes once"):
        Harness(base).adapters.load("router", directory)


def test_experts_that_change_with_any_rounding_are_served_as_well_as_they_serve_themselves(
    tmp_path: Path,
) -> None:
    """Random experts of gpt-oss in bfloat16: the model's own logits move by 30 % when its input is
    rounded the other way, and so do ours, though in float32 both agree to 1e-5."""
    config = SERVED["gpt_oss"].config()
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}
    layers = {"num_hidden_layers": 4, "num_key_value_heads": 4, "layer_types": None}
    experts = {"num_local_experts": 16, "num_experts_per_tok": 4, "initializer_range": 0.06}
    wide = type(config)(**{**config.to_dict(), **shape, **layers, **experts})
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(wide).to(torch.bfloat16)
    load(model, tmp_path, dtype="bfloat16")
