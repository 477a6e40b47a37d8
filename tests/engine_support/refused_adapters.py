"""The part of the corpus that is refused: variants of LoRA, other methods, damaged folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft
from peft import PeftConfig, TaskType
from tiny_models import VOCAB_SIZE
from transformers import PreTrainedModel

from engine_support.adapter_builders import TOKENS, lora, other, plain_lora, renamed, with_settings
from engine_support.adapter_corpus import Case, Names


def refused_cases() -> Iterator[Case]:
    """All of them."""
    yield from _variants()
    yield from _other_methods()
    yield from _damaged()


def _other_on_attention(method: str, **settings: Any) -> Callable[[Names], PeftConfig]:
    config: Any = getattr(peft, method + "Config")
    return lambda names: config(
        target_modules=[names.attention], task_type=TaskType.CAUSAL_LM, **settings
    )


def _resize(model: PreTrainedModel, config: PeftConfig) -> None:
    model.resize_token_embeddings(VOCAB_SIZE + 8)


def _variants() -> Iterator[Case]:
    variants: dict[str, tuple[dict[str, Any], str]] = {
        "alora_invocation_tokens": ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
        "use_qalora": ({"use_qalora": True}, "QA-LoRA"),
        "kasa_config": ({"kasa_config": peft.KasaConfig()}, "KaSA"),
        "monteclora_config": ({"monteclora_config": peft.MontecloraConfig()}, "MonteCLoRA"),
        "use_bdlora": (
            {"use_bdlora": peft.BdLoraConfig(target_modules_bd_b=["proj"], nblocks=2)},
            "block-diagonal LoRA",
        ),
        "layer_replication": ({"layer_replication": [(0, 2), (1, 2)]}, "layers used twice"),
    }
    for key, (settings, feature) in variants.items():
        yield Case(key, feature, plain_lora(**settings), f"{key}: ", bases=("llama",))
    yield Case(
        "target_parameters",
        "expert weights and other bare parameters",
        lambda n: lora(
            n, ["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        ),
        "target_parameters: ",
        bases=("qwen3_moe",),
    )
    yield Case(
        "attention beside experts",
        "low-rank updates",
        lambda n: lora(n, ["q_proj"]),
        bases=("qwen3_moe",),
    )
    plain = plain_lora()
    yield Case(
        "arrow_config",
        "Arrow",
        plain,
        "arrow_config",
        edit=with_settings(arrow_config={"top_k": 3}),
        bases=("llama",),
    )
    yield Case(
        "megatron_config",
        "Megatron layers",
        plain,
        "megatron_config",
        edit=with_settings(megatron_config={"x": 1}),
        bases=("llama",),
    )
    yield Case(
        "an option of a later PEFT",
        "a key that is not known",
        plain,
        "rotation: ",
        edit=with_settings(rotation={"x": 1}),
        bases=("llama",),
    )
    yield Case(
        "classification",
        "other tasks",
        plain,
        "task_type",
        edit=with_settings(task_type="SEQ_CLS"),
        bases=("llama",),
    )


def _other_methods() -> Iterator[Case]:
    configs: dict[str, Callable[[Names], PeftConfig]] = {
        "IA3": lambda n: peft.IA3Config(
            target_modules=n.both, feedforward_modules=[n.mlp], task_type=TaskType.CAUSAL_LM
        ),
        "ADALORA": _other_on_attention("AdaLora", total_step=10),
        "LOHA": _other_on_attention("LoHa"),
        "LOKR": _other_on_attention("LoKr"),
        "OFT": _other_on_attention("OFT", oft_block_size=4),
        "VERA": _other_on_attention("Vera", r=4),
        "HRA": _other_on_attention("HRA", r=2),
        "FOURIERFT": _other_on_attention("FourierFT", n_frequency=10),
        "RANDLORA": _other_on_attention("RandLora", r=4),
        "LN_TUNING": lambda n: peft.LNTuningConfig(
            target_modules=[n.final_norm], task_type=TaskType.CAUSAL_LM
        ),
        "TRAINABLE_TOKENS": lambda n: peft.TrainableTokensConfig(
            target_modules=[n.embedding], token_indices=TOKENS, task_type=TaskType.CAUSAL_LM
        ),
        "MULTITASK_PROMPT_TUNING": other(
            "MultitaskPromptTuning", num_virtual_tokens=4, num_tasks=2, num_ranks=2
        ),
    }
    for peft_type, config in configs.items():
        yield Case(
            peft_type,
            "every other method",
            config,
            f'peft_type: "{peft_type}" is not supported',
            bases=("llama",),
        )


def _damaged() -> Iterator[Case]:
    """What else is found on disks: keys as `state_dict` has them, other vocabularies."""
    low = "low-rank updates"
    yield Case(
        "the adapter's name in its keys",
        low,
        plain_lora(),
        "the adapter's name left in its key",
        edit=renamed(lambda name: name.replace(".weight", ".default.weight")),
        bases=("llama", "gpt2"),
    )
    yield Case(
        "keys without their prefix",
        low,
        plain_lora(),
        "does not start with base_model.model.",
        edit=renamed(lambda name: name.removeprefix("base_model.model.")),
        bases=("llama", "gpt2"),
    )
    yield Case(
        "a resized vocabulary",
        "modules trained in full",
        plain_lora(),
        "resized embedding",
        prepare=_resize,
        save={"save_embedding_layers": True},
        bases=("llama",),
    )
