"""A comparison of two short arms on the tiny base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeDocument = Callable[..., dict[str, Any]]


@pytest.fixture
def make_document(tiny_base: Path, toy_file: Path) -> MakeDocument:
    """Keyword arguments replace keys of the comparison."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "name": "toy",
            "seeds": [0],
            "shared": {
                "base": {"path": str(tiny_base)},
                "data": {"train": str(toy_file), "split": {}},
                "optim": {"epochs": 1, "lr": 0.02, "batch": 32},
                "eval": {"generate": {"rows": 2, "max_new_tokens": 4}},
                "runtime": {"account_memory": False},
            },
            "arms": {
                "base": {"shots": 0},
                "lora": {"recipe": {"method": {"kind": "lora", "r": 2}}},
            },
            **changes,
        }

    return make
