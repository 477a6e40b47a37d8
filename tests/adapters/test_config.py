"""Every key of PEFT's configs is used, ignored for a reason, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapter_support.directories import lora_config
from peft import LoraConfig, PeftType, PromptEncoderConfig, PromptTuningConfig

from polygraft.adapters.config import (
    ACCEPTED_TYPES,
    LoraSettings,
    PromptSettings,
    parse_config,
)
from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported
from polygraft.adapters.features import Method, Status, keys

REFUSED = {
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "alora_invocation_tokens": [5],
    "layer_replication": [[0, 1]],
    "use_qalora": True,
    "use_bdlora": {"x": 1},
    "kasa_config": {"x": 1},
    "monteclora_config": {"x": 1},
    "arrow_config": {"x": 1},
    "megatron_config": {"x": 1},
    "init_lora_weights": "pissa",
    "task_type": "SEQ_CLS",
    "a_key_of_the_future": {"rotate": 3},
}


def soft_prompt(method: type[Any] = PromptTuningConfig, **changes: Any) -> dict[str, Any]:
    settings = method(num_virtual_tokens=4, token_dim=8, task_type="CAUSAL_LM")
    return {**settings.to_dict(), **changes}


def test_defaults_of_peft_are_accepted() -> None:
    settings = parse_config(lora_config())
    assert isinstance(settings, LoraSettings)
    assert settings.scaling("any", 2) == 2.0
    assert settings.peft_version == "0.21.2"
    for method in (PromptTuningConfig, PromptEncoderConfig):
        prompt = parse_config(soft_prompt(method))
        assert isinstance(prompt, PromptSettings)
        assert (prompt.num_virtual_tokens, prompt.token_dim) == (4, 8)


def test_a_config_of_an_old_peft_with_few_keys_is_accepted() -> None:
    settings = parse_config({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "bias": "none"})
    assert isinstance(settings, LoraSettings)
    assert settings.scaling("any", 4) == 4.0


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_change_the_result_is_refused_by_name(key: str) -> None:
    with pytest.raises(AdapterUnsupported, match=rf"^adapter_config.json: {key}: ") as caught:
        parse_config(lora_config(**{key: REFUSED[key]}))
    assert caught.value.item == key
    assert caught.value.found == REFUSED[key]
    assert caught.value.hint


@pytest.mark.parametrize("key", LoraConfig().to_dict())
def test_no_key_of_peft_is_unknown(key: str) -> None:
    """A new option of PEFT must be looked at before its configs are accepted."""
    assert key in keys(Method.LORA, *Status)


@pytest.mark.parametrize(
    "init", ["olora", "pissa_niter_4", "corda", "loftq", "lora_ga", "a_new_one"]
)
def test_initialisations_that_touch_the_base_are_refused(init: str) -> None:
    with pytest.raises(AdapterUnsupported, match="init_lora_weights"):
        parse_config(lora_config(init_lora_weights=init))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_initialisations_that_leave_the_base_alone_are_accepted(init: bool | str) -> None:
    parse_config(lora_config(init_lora_weights=init))


@pytest.mark.parametrize("peft_type", sorted(set(PeftType) - set(ACCEPTED_TYPES)))
def test_every_other_method_of_peft_is_refused_by_name(peft_type: str) -> None:
    with pytest.raises(AdapterUnsupported, match=f"peft_type: .*{peft_type}.*LORA or PROMPT"):
        parse_config({"peft_type": str(peft_type), "r": 4})


@pytest.mark.parametrize("peft_type", [None, 7, ["LORA"], "lora"])
def test_a_type_that_is_none_is_refused(peft_type: object) -> None:
    with pytest.raises(AdapterUnsupported, match="peft_type"):
        parse_config({"peft_type": peft_type})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", -4),
        ("r", 1.5),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", "16"),
        ("lora_alpha", None),
        ("use_rslora", "yes"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": -1}),
        ("alpha_pattern", {"q_proj": "2"}),
        ("use_dora", 1),
        ("lora_bias", "yes"),
        ("bias", "lora"),
        ("modules_to_save", "lm_head"),
        ("modules_to_save", [3]),
        ("trainable_token_indices", [1, True]),
        ("trainable_token_indices", ["1"]),
        ("trainable_token_indices", {"wte": [1], "lm_head": [2]}),
    ],
)
def test_values_of_the_wrong_kind_are_refused(key: str, value: object) -> None:
    with pytest.raises(AdapterInvalid, match=key):
        parse_config(lora_config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_virtual_tokens", 0),
        ("num_virtual_tokens", None),
        ("token_dim", "8"),
        ("num_transformer_submodules", 2),
        ("modules_to_save", ["lm_head"]),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("unknown", 1),
    ],
)
def test_soft_prompts_are_checked_as_strictly(key: str, value: object) -> None:
    with pytest.raises(AdapterInvalid, match=key):
        parse_config(soft_prompt(**{key: value}))


def test_all_problems_of_a_config_are_told_at_once() -> None:
    with pytest.raises(AdapterInvalid) as caught:
        parse_config(lora_config(use_qalora=True, r=0, bias="most"))
    text = str(caught.value)
    assert text.startswith("3 problems.")
    for part in ("use_qalora: true is not supported", "r: 0 is not valid", 'bias: "most"'):
        assert part in text


@pytest.mark.parametrize("key", sorted(keys(Method.LORA, *Status)))
def test_the_guide_names_every_key_that_decides_something(key: str, repository_root: Path) -> None:
    assert f"`{key}`" in (repository_root / "docs" / "adapters.md").read_text()
