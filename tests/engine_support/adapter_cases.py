"""The configurations of the corpus, and what is expected of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from engine_support.adapter_builders import TOKENS, lora, other, plain_lora, with_settings
from engine_support.adapter_corpus import ALL, ODD, Case, Prepare
from engine_support.refused_adapters import refused_cases
from polygraft.adapters.features import PLAIN_INITS
from polygraft.adapters.files import WEIGHTS_FILE

IDS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(5))


def _preprocess_lora_ga(model: PreTrainedModel, config: LoraConfig) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    preprocess_loraga(model, config, lambda: model(IDS, labels=IDS).loss.backward())


def _start_eva(model: PeftModel) -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    peft.initialize_lora_eva_weights(model, [inputs] * 4, show_progress_bar=False)


def _cases() -> Iterator[Case]:
    yield from _low_rank()
    yield from _virtual()
    yield from _initialisations()
    yield from map(_also_on_odd_bases, _beside_low_rank())
    yield from refused_cases()


def _low_rank() -> Iterator[Case]:
    low = "low-rank updates"
    patterns = "ranks and scales by layer"
    yield Case("all linear layers", low, lambda n: lora(n, "all-linear", r=3, lora_alpha=7))
    yield Case("two projections", low, plain_lora(r=8, lora_alpha=16))
    yield Case("rank 1", low, plain_lora(r=1, lora_alpha=1))
    yield Case("rank 33", low, plain_lora(r=33, lora_alpha=5), bases=("llama", "gpt2"))
    yield Case("negative alpha", low, plain_lora(lora_alpha=-3), bases=("qwen3",))
    yield Case("alpha of a fraction", low, plain_lora(lora_alpha=0.7), bases=("phi3",))
    yield Case("dropout", low, plain_lora(lora_dropout=0.3), bases=("llama",))
    yield Case("an expression", low, lambda n: lora(n, rf".*\.1\..*{n.mlp}"))
    yield Case("one layer", low, plain_lora(layers_to_transform=[1]))
    yield Case(
        "one layer by pattern",
        low,
        lambda n: lora(n, layers_to_transform=0, layers_pattern=n.layers),
        bases=("llama", "gpt2"),
    )
    yield Case("excluded", low, lambda n: lora(n, exclude_modules=[n.mlp]))
    yield Case(
        "excluded by expression",
        low,
        lambda n: lora(n, exclude_modules=rf".*\.0\..*{n.mlp}"),
        bases=("qwen3",),
    )
    yield Case("no task", low, plain_lora(task_type=None), bases=("llama", "phi3"))
    yield Case("rank-stabilised", "rank-stabilised scale", plain_lora(r=8, use_rslora=True))
    yield Case(
        "patterns",
        patterns,
        lambda n: lora(n, rank_pattern={n.mlp: 7}, alpha_pattern={n.attention: 24}),
    )
    yield Case(
        "patterns by layer",
        patterns,
        lambda n: lora(
            n,
            rank_pattern={rf"{n.layers}\.1\..*{n.attention}": 2},
            alpha_pattern={rf"^.*{n.layers}\.0\..*": 1, rf"{n.layers}\.1\..*": 9},
        ),
    )
    yield Case(
        "rank-stabilised patterns",
        patterns,
        lambda n: lora(n, use_rslora=True, rank_pattern={n.mlp: 9}, alpha_pattern={n.mlp: 3}),
        bases=("gpt2", "qwen3"),
    )
    yield Case(
        "several patterns for one layer",
        patterns,
        lambda n: lora(n, alpha_pattern={n.mlp: 3, rf"mlp\.{n.mlp}": 4}),
        refused="alpha_pattern: several patterns match",
        bases=("llama",),
    )


def _virtual() -> Iterator[Case]:
    soft, prefix = "soft prompts", "prefixes"
    yield Case("prompt tuning", soft, other("PromptTuning", num_virtual_tokens=5))
    yield Case(
        "p-tuning", soft, other("PromptEncoder", num_virtual_tokens=6, encoder_hidden_size=16)
    )
    yield Case(
        "p-tuning by LSTM",
        soft,
        other(
            "PromptEncoder",
            num_virtual_tokens=3,
            encoder_hidden_size=16,
            encoder_reparameterization_type="LSTM",
        ),
        bases=("llama", "phi3"),
    )
    yield Case("prefix tuning", prefix, other("PrefixTuning", num_virtual_tokens=5))
    yield Case(
        "projected prefix tuning",
        prefix,
        other(
            "PrefixTuning", num_virtual_tokens=19, prefix_projection=True, encoder_hidden_size=16
        ),
    )


_REWRITTEN = {
    "pissa": ("llama", "gpt2"),
    "pissa_niter_4": ("phi3",),
    "olora": ("llama", "phi3"),  # PEFT cannot reload one on Conv1D
    "lora_ga": ("qwen3", "gpt2"),
}


def _initialisations() -> Iterator[Case]:
    plain = "initialisations that leave the base alone"
    for init in PLAIN_INITS:
        value = {"true": True, "false": False}.get(init, init)
        yield Case(
            f"init {init}",
            plain,
            plain_lora(init_lora_weights=value),
            begin=_start_eva if init == "eva" else None,
            bases=("llama", "gpt2"),
        )
    eva = peft.EvaConfig(rho=2.0)
    yield Case(
        "eva that gives ranks away",
        plain,
        plain_lora(init_lora_weights="eva", eva_config=eva),
        begin=_start_eva,
        bases=("qwen3", "phi3"),
    )
    rewriting = "PiSSA, OLoRA, CorDA and LoRA-GA"
    methods: dict[str, tuple[dict[str, Any], Prepare | None]] = {
        "pissa": ({}, None),
        "pissa_niter_4": ({}, None),
        "olora": ({}, None),
        "lora_ga": ({"lora_ga_config": peft.LoraGAConfig()}, _preprocess_lora_ga),
    }
    for init, (settings, prepare) in methods.items():
        for converts in (False, True):
            yield Case(
                f"{init}, converted" if converts else init,
                rewriting,
                plain_lora(init_lora_weights=init, **settings),
                refused=None if converts else f"init_lora_weights: .*{init}.*Convert",
                prepare=prepare,
                converts=converts,
                bases=_REWRITTEN[init],
            )
    # PEFT needs packages for these two that nothing else needs: their configs on a plain LoRA.
    yield Case(
        "corda",
        rewriting,
        plain_lora(),
        "init_lora_weights: .*corda.*Convert",
        edit=with_settings(init_lora_weights="corda", corda_config={"corda_method": "ipm"}),
        bases=("llama",),
    )
    yield Case(
        "loftq",
        "LoftQ",
        plain_lora(),
        "init_lora_weights: .*loftq.*LoftQ trains against",
        edit=with_settings(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
        bases=("llama",),
    )


def _also_on_odd_bases(case: Case) -> Case:
    """What changes more than low-rank updates is tried on more architectures."""
    return replace(case, bases=(*ALL, *ODD)) if case.bases == ALL and not case.refused else case


def _beside_low_rank() -> Iterator[Case]:
    yield Case("lora_bias", "a bias of LoRA", plain_lora(lora_bias=True, use_rslora=True))
    for bias in ("all", "lora_only"):
        yield Case(f"bias {bias}", "biases", plain_lora(bias=bias))
    tokens = "trainable tokens"
    yield Case(tokens, tokens, plain_lora(trainable_token_indices=TOKENS))
    yield Case(
        "trainable tokens by name",
        tokens,
        lambda n: lora(n, trainable_token_indices={n.embedding: [9, 2]}),
        bases=("llama", "phi3"),
    )
    yield Case(
        "trainable tokens of the head",
        tokens,
        lambda n: lora(n, trainable_token_indices={"lm_head": [9, 2]}),
        "trainable_token_indices: tokens of lm_head",
        bases=("qwen3",),
    )
    yield Case("dora", "DoRA", plain_lora(use_dora=True))
    yield Case("dora everywhere", "DoRA", lambda n: lora(n, "all-linear", use_dora=True))
    yield Case(
        "dora with patterns",
        "DoRA",
        lambda n: lora(
            n, use_dora=True, use_rslora=True, rank_pattern={n.mlp: 2}, alpha_pattern={n.mlp: 5}
        ),
        bases=("gpt2", "qwen3"),
    )
    yield Case(
        "dora on the output head",
        "DoRA",
        lambda n: lora(n, [n.attention, "lm_head"], use_dora=True),
        "DoRA on lm_head",
        bases=("qwen3",),
    )
    yield from _trained_in_full()
    yield from _tables()
    yield from _tied()
    yield Case(
        "everything at once",
        "biases",
        lambda n: lora(
            n,
            [n.attention, n.mlp, n.embedding, "lm_head"],
            bias="lora_only",
            use_rslora=True,
            modules_to_save=[n.final_norm],
        ),
        bases=("gpt2", "phi3"),
    )
    yield Case(
        "all biases beside a norm trained in full",  # PEFT saves the norm's three times over
        "biases",
        lambda n: lora(n, bias="all", modules_to_save=[n.final_norm]),
        "holds modules_to_save",
        bases=("gpt2",),
    )


def _trained_in_full() -> Iterator[Case]:
    full = "modules trained in full"
    parts = {"head": "lm_head", "embedding": "embedding", "norm": "final_norm"}
    for name, part in parts.items():
        bases = ("llama", "gpt2", "phi3", *ODD) if name == "norm" else ALL
        yield Case(
            f"{name} trained in full",
            full,
            lambda n, part=part: lora(n, modules_to_save=[getattr(n, part, part)]),
            bases=bases,
        )
    yield Case(
        "norms of the layers trained in full",
        full,
        lambda n: lora(n, modules_to_save=["input_layernorm", "post_attention_layernorm"]),
        bases=("llama", "qwen3", "phi3"),
    )
    yield Case(
        "norms inside attention trained in full",
        full,
        lambda n: lora(n, modules_to_save=["norm"]),
        "q_norm, which normalises parts of a row",
        bases=("qwen3",),
    )
    yield Case(
        "a projection trained in full",
        full,
        lambda n: lora(n, [n.attention], modules_to_save=[n.mlp]),
        "a full weight",
        bases=("llama",),
    )


def _tables() -> Iterator[Case]:
    embedding, head = "LoRA on an embedding", "LoRA on the output head"
    yield Case(embedding, embedding, lambda n: lora(n, [n.attention, n.embedding]))
    yield Case(
        "LoRA on nothing but an embedding",
        embedding,
        lambda n: lora(n, [n.embedding], alpha_pattern={n.embedding: 9}),
        bases=("llama", "gpt2"),
    )
    yield Case(
        "LoRA on both, with copies of them",
        embedding,
        lambda n: lora(n, [n.embedding, "lm_head", n.mlp]),
        save={},
        bases=("llama", "qwen3"),
    )
    yield Case(head, head, lambda n: lora(n, [n.attention, "lm_head"], use_rslora=True))
    yield Case(
        "LoRA on nothing but the output head",
        head,
        lambda n: lora(n, ["lm_head"], rank_pattern={"lm_head": 9}),
        bases=("llama", "phi3"),
    )
    yield Case(
        "LoRA on the output head with its bias",
        head,
        lambda n: lora(n, [n.attention, "lm_head"], lora_bias=True),
        bases=("qwen3",),
    )
    yield Case(
        "a copy of another base's head",
        head,
        lambda n: lora(n, [n.attention, "lm_head"]),
        "is not the weight of",
        edit=_change_copy,
        save={},
        bases=("qwen3",),
    )


def _tied() -> Iterator[Case]:
    tied = "embedding and head tied to each other"
    yield Case(
        "tied, and neither changed", tied, plain_lora(ensure_weight_tying=True), bases=("llama",)
    )
    yield Case(
        "tied tokens",
        tied,
        plain_lora(ensure_weight_tying=True, trainable_token_indices=TOKENS),
        bases=("llama", "gpt2", "qwen3"),
    )
    yield Case(
        "LoRA on both, tied",
        tied,
        lambda n: lora(n, [n.attention, "embed_tokens"], ensure_weight_tying=True),
        bases=("llama", "qwen3", "gemma3"),
    )
    yield Case(
        "both trained in full, tied",
        tied,
        lambda n: lora(n, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        bases=("llama", "qwen3", "gemma3"),
    )
    yield Case(
        "only one of two that are tied",  # PEFT ties those that it knows by name
        tied,
        lambda n: lora(n, [n.attention, n.embedding], ensure_weight_tying=True),
        "ensure_weight_tying: embedding and head",
        bases=("gpt2",),
    )
    yield Case(
        "VeLoRA",
        "VeLoRA",
        plain_lora(velora_config=peft.VeloraConfig(num_groups=2, init_type="random")),
        bases=("llama", "phi3"),
    )


def _change_copy(directory: Path) -> None:
    file = directory / WEIGHTS_FILE
    tensors = load_file(file)
    (name,) = [name for name in tensors if name.endswith("base_layer.weight")]
    tensors[name][3, 5] += 0.5
    save_file(tensors, file)


CASES: tuple[Case, ...] = tuple(_cases())
