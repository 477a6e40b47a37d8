"""Tiny random models and a byte tokenizer, made where they are needed; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 264
"""256 bytes, then the special tokens, then unused ids."""
BOS, EOS = 256, 257
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<u>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def byte_tokenizer(*, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte: `<s>` `</s>` `<pad>` `<u>` `<a>` behind the 256 bytes, no BOS added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
        additional_special_tokens=["<u>", "<a>"],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llama(*, seed: int = 0, hidden: int = 64, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama (grouped-query attention, tied embeddings) for the byte tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


def tiny_gpt2(*, seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2: learned positions, Conv1D layers, merged projections."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.1,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = GPT2LMHeadModel(config)
    model.train(False)
    return model


def save_base(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Write model and tokenizer as a base directory; returns it."""
    model.save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return directory
