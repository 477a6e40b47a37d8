"""Prompt and completion to ids and labels, computed by hand."""

from pathlib import Path

import pytest
import torch
from tiny_models import BOS, EOS, byte_tokenizer, save_base, tiny_llama
from transformers import PreTrainedTokenizerFast

from polygraft.adapters.prompt import PromptRecipe, encode_variables
from polygraft.trainer.collate import Collator
from polygraft.trainer.data import Example
from polygraft.trainer.encode import IGNORED, encode_examples
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.source import build_recipe

PROMPT = {
    "segments": [{"text": "Q: "}, {"var": "q"}],
    "wrap": "none",
    "defaults": {"temperature": "0", "max_output_tokens": 8},
}


def example(question: str, answer: str) -> Example:
    return Example("1", "g", {"q": question}, answer, "rows.jsonl:1")


def byte_ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(list(text.replace(" ", "Ġ")))
    assert isinstance(ids, list)
    return ids


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_labels_are_the_completion_and_its_end_by_position(pad_is_eos: bool) -> None:
    tokenizer = byte_tokenizer(pad_is_eos=pad_is_eos)
    recipe = build_recipe(PROMPT, tokenizer)
    long, short = encode_examples([example("abc", "yes"), example("z", "n")], recipe, tokenizer)
    prompt, completion = byte_ids("Q: abc", tokenizer), byte_ids("yes", tokenizer)
    assert long.input_ids == [*prompt, *completion, EOS]
    assert long.labels == [IGNORED] * len(prompt) + [*completion, EOS]

    batch = Collator(tokenizer.pad_token_id)([long, short])
    width, pads = len(long.input_ids), len(long.input_ids) - len(short.input_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, width)
    assert batch["input_ids"][1].tolist() == short.input_ids + [tokenizer.pad_token_id] * pads
    assert batch["labels"][1].tolist() == short.labels + [IGNORED] * pads
    assert batch["attention_mask"].tolist() == [
        [1] * width,
        [1] * len(short.input_ids) + [0] * pads,
    ]
    # The end token is learned although it is also the pad token.
    assert batch["labels"][1, len(short.labels) - 1] == EOS


def test_the_loss_is_that_of_the_completion_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_llama()
    recipe = build_recipe(PROMPT, tokenizer)
    rows = encode_examples([example("abc", "yes"), example("z", "n")], recipe, tokenizer)
    with torch.no_grad():
        together = float(model(**Collator(EOS)(rows)).loss)
        total, count = 0.0, 0
        for row in rows:
            log_probs = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
            for offset, token in enumerate(row.completion):
                total -= float(log_probs[len(row.prompt) + offset - 1, token])
                count += 1
    assert together == pytest.approx(total / count, abs=1e-5)


def test_the_prompt_is_encoded_as_the_server_does(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = build_recipe({**PROMPT, "wrap": "chat"}, tokenizer)
    (row,) = encode_examples([example("x", "y")], recipe, tokenizer)
    assert row.prompt == encode_variables(recipe, {"q": "x"}, tokenizer)
    assert row.prompt[0] == BOS
    assert row.prompt.count(BOS) == 1


def test_a_special_token_in_the_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = build_recipe(PROMPT, tokenizer)
    with pytest.raises(DataError, match=r"rows.jsonl:1: completion: .*</s>"):
        encode_examples([example("x", "y</s>")], recipe, tokenizer)
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*special token"):
        encode_examples([example("x</s>", "y")], recipe, tokenizer)


def test_a_tokenizer_without_end_is_refused(tmp_path: Path) -> None:
    endless = byte_tokenizer()
    endless.eos_token = None
    base = save_base(tmp_path / "base", tiny_llama(), endless)
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        load_tokenizer(str(base))


def test_the_recipe_stops_at_the_token_that_was_trained(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    recipe = build_recipe(PROMPT, tokenizer, eos_token_ids=[7, EOS])
    assert recipe.stop_token_ids == ()
    recipe = build_recipe(PROMPT, tokenizer, eos_token_ids=[7])
    assert recipe.stop_token_ids == (EOS,)
    assert recipe.defaults.max_output_tokens == "8"
    assert isinstance(recipe, PromptRecipe)
