"""Random-weight models of known shapes and PEFT adapters for them, made locally and cached.

Speed does not depend on what the weights are, so nothing is downloaded. The tokenizer is byte-level
with filler words up to the model's vocabulary: every id decodes to some text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    # HuggingFaceTB/SmolLM2-135M, config.json
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.041666666666666664,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "tiny": {  # heads of 32: the smallest that vLLM computes
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}
RANKS = (8, 16)  # adapter k has rank RANKS[k % 2]
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def prepare_model(
    name: str, num_adapters: int, *, dtype: str, seed: int
) -> tuple[Path, list[Path]]:
    """Paths of the base and of its adapters; made, and published by a rename, if not cached."""
    identity = json.dumps([MODELS[name], num_adapters, dtype, seed, RANKS, TARGET_MODULES])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "polygraft-benchmarks" / f"{name}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _make(Path(made) / "model", MODELS[name], num_adapters, dtype=dtype, seed=seed)
            shutil.move(Path(made) / "model", folder)
    return folder / "base", [folder / "adapters" / adapter_name(k) for k in range(num_adapters)]


def adapter_name(index: int) -> str:
    """The name under which adapter `index` is published."""
    return f"adapter-{index:03d}"


def _make(
    folder: Path, config: dict[str, Any], num_adapters: int, *, dtype: str, seed: int
) -> None:
    """Write `base/` and `adapters/<name>/` as `save_pretrained` of transformers and PEFT does."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    _make_tokenizer(config["vocab_size"]).save_pretrained(folder / "base")

    tuned: PeftModel | None = None
    for index in range(num_adapters):
        rank = RANKS[index % len(RANKS)]
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(TARGET_MODULES),
            init_lora_weights=False,  # random lora_B too: an adapter that does something
            task_type="CAUSAL_LM",
        )
        if tuned is None:
            tuned = get_peft_model(model, lora, adapter_name=adapter_name(index))
        else:
            tuned.add_adapter(adapter_name(index), lora)
    assert tuned is not None
    tuned.save_pretrained(str(folder / "adapters"))


def _make_tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *alphabet]
    tokens += [f"Ġword{index}" for index in range(len(tokens), vocab_size)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": tokens[0], "eos_token": tokens[0], "pad_token": tokens[0]}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, **special
    )
