"""Ids and labels of 64 rows equal TRL's, kept in `golden/` by `golden/make_trl_labels.py`."""

import json
from pathlib import Path

from polygraft.trainer.config import Data
from polygraft.trainer.data import Example
from polygraft.trainer.encode import encode_examples
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.source import build_recipe, load_source

GOLDEN = json.loads((Path(__file__).parent / "golden" / "trl_labels.json").read_text())["rows"]


def test_labels_of_a_recipe_equal_trl() -> None:
    source = load_source(Data(task="builtin:dsum", rows=64))
    tokenizer = load_tokenizer("builtin:nano")
    rows = encode_examples(source.splits.train, build_recipe(source.prompt, tokenizer), tokenizer)
    assert len(rows) == len(GOLDEN) == 64
    assert [{"input_ids": r.input_ids, "labels": r.labels} for r in rows] == GOLDEN


def test_labels_of_chats_equal_trl() -> None:
    source = load_source(Data(task="builtin:dsum", rows=64))
    instruction = source.prompt["segments"][0]["text"]
    chats = [
        Example(
            row.id,
            "g",
            {},
            row.completion,
            "here",
            ({"role": "user", "content": instruction + row.variables["dialogue"]},),
        )
        for row in source.splits.train
    ]
    tokenizer = load_tokenizer("builtin:nano")
    rows = encode_examples(chats, build_recipe(source.prompt, tokenizer), tokenizer)
    assert [{"input_ids": r.input_ids, "labels": r.labels} for r in rows] == GOLDEN
