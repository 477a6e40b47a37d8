"""A tiny base on disk and toy data that it can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer, save_base, tiny_llama
from transformers import PreTrainedTokenizerFast

from polygraft.trainer.config import RunConfig
from polygraft.trainer.recipe import parse_recipe

WORDS = ("red", "green", "blue", "dog", "cat", "sun", "moon", "tree")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer."""
    return save_base(tmp_path_factory.mktemp("base") / "tiny", tiny_llama())


@pytest.fixture(scope="session")
def toy_rows() -> list[dict[str, str]]:
    """Say the word again: 120 distinct rows, one-word answers."""
    source = random.Random(0)
    return [
        {"id": f"r{i}", "prompt": f"{(word := source.choice(WORDS))} {i}:", "completion": word}
        for i in range(120)
    ]


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: list[dict[str, str]]) -> Path:
    """The toy rows as JSONL."""
    path = tmp_path_factory.mktemp("data") / "toy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in toy_rows))
    return path


@pytest.fixture
def make_config(tiny_base: Path, toy_file: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A short run on the tiny base; keyword arguments replace whole sections."""

    def make(**sections: Any) -> RunConfig:
        return parse_recipe(
            {
                "name": "toy",
                "base": {"path": str(tiny_base)},
                "data": {"train": str(toy_file), "split": {}},
                "method": {"kind": "lora", "r": 4},
                "optim": {"epochs": 2, "lr": 0.01},
                "eval": {"every": 1, "generate": {"rows": 4, "max_new_tokens": 8}},
                "runtime": {"account_memory": False},  # it has tests of its own
                "output": str(tmp_path / "runs"),
                **sections,
            }
        )

    return make
