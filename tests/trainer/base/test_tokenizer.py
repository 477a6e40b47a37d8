"""The tokenizer decodes what it encodes and renders the chat form that training used."""

import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from polygraft.adapters.fingerprint import resolve_base
from polygraft.trainer.base.corpus import Document
from polygraft.trainer.base.encoding import Encoder, batches
from polygraft.trainer.base.preset import PRESETS, Preset
from polygraft.trainer.base.tokenizer import SPECIALS, merged_from, printable_ids


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(resolve_base("builtin:nano"))


@pytest.mark.parametrize(
    "text",
    ["Ana: Shall we swim at 10 pm?", "  two  spaces\n\nlines\t", "Zoë 東京 🙂", "", "a<b>c\r\n"],
)
def test_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_distinct_ids_with_their_roles(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("hi")["input_ids"][0] == 1


def test_the_chat_template_renders_prompts_and_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Copy:\nx"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><u>Copy:\nx<a>"
    messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert whole == "<s><u>Copy:\nx<a>x</s><u>y<a>"
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "y"}]
    assert tokenizer.apply_chat_template(system, tokenize=False) == "<s><u>Be kind.\ny"


def test_serving_sees_the_prompt_ids_that_training_saw(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    preset = Preset(**{**vars(PRESETS["nano"]), "split_documents": 0.0})
    document = Document("copy", (("Copy:\nKlaus 12.", "Klaus 12."),))
    (encoded,) = Encoder(tokenizer, preset).encode([document], random.Random(0))
    messages = [
        {"role": "user", "content": "Copy:\nKlaus 12."},
        {"role": "assistant", "content": "Klaus 12."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == encoded.ids


def test_only_answers_and_their_end_have_full_weight(tokenizer: PreTrainedTokenizerFast) -> None:
    preset = Preset(**{**vars(PRESETS["nano"]), "split_documents": 0.0})
    document = Document("copy", (("a b", "c d"), ("e", "f")))
    (encoded,) = Encoder(tokenizer, preset).encode([document], random.Random(0))
    full = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w == 1.0]
    assert tokenizer.decode(full) == "c d</s>f</s>"


def test_split_tokens_still_spell_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    always = Preset(**{**vars(PRESETS["nano"]), "split_documents": 1.0, "split_probability": 0.5})
    document = Document("copy", (("Say something about Friday", "at the station"),))
    (encoded,) = Encoder(tokenizer, always).encode([document], random.Random(0))
    expected = "<s><u>Say something about Friday<a>at the station</s>"
    assert tokenizer.decode(encoded.ids) == expected
    assert len(encoded.ids) > len(tokenizer(expected, add_special_tokens=False)["input_ids"])


def test_random_pieces_are_copied_id_by_id(tokenizer: PreTrainedTokenizerFast) -> None:
    document = Document("pieces", (("Copy:\n", ""),), pieces=20)
    (encoded,) = Encoder(tokenizer, PRESETS["nano"]).encode([document], random.Random(0))
    answer = encoded.ids.index(4)
    assert encoded.ids[answer + 1 : -1] == encoded.ids[answer - 20 : answer]


def test_merges_lead_back_to_single_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    halves = merged_from(tokenizer)
    assert len(tokenizer) - len(SPECIALS) - len(halves) == 256
    assert len(printable_ids(tokenizer)) > 800


def test_batches_are_full_and_hold_each_document_at_most_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    made = [Document("copy", (("a" * n, str(n)),)) for n in range(1, 200)]
    encoded = Encoder(tokenizer, PRESETS["nano"]).encode(made, random.Random(0))
    found = list(batches(encoded, 1024, random.Random(0)))
    assert all(512 < ids.numel() <= 1024 and ids.shape == w.shape for ids, w in found)
    assert sum(len(ids) for ids, _ in found) <= len(encoded)
