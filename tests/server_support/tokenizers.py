"""Small tokenizers of the kinds that bases come with, trained on a few sentences."""
# ruff: noqa: RUF001 - the sentences are in many scripts on purpose

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Hello world, this is a plain sentence with  two spaces and a tab\t.",
    "Zażółć gęślą jaźń — naïve café, 東京都は日本の首都です。",
    "Emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 😀😀 and flags 🇵🇱🇯🇵; math ∑∀x∈ℝ; \u202bעברית\u202c.",
    "code:\n    def f(x):\n        return x ** 2  # don't\n",
    " leading space, trailing space ",
]


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=["<sp>"]
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3, Qwen: merges cut through characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral, Gemma: spaces are part of tokens, unknown characters are byte tokens."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += sorted(
        {c for c in "".join(TEXTS).replace(" ", "") if c.isascii() and c.isprintable()}
    )
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("l", "l"), ("\u2581", "a")]
    pieces += [a + b for a, b in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrap(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """As T5 and XLNet: unigram pieces, the first of which loses its space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT: the joiner is in the token, the space is not."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer)


MAKERS = [byte_level, byte_fallback, metaspace, wordpiece]
