"""What the demo trains: a hasty and a full LoRA for one task, a soft prompt for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polygraft.trainer.config import RunConfig
from polygraft.trainer.recipe import parse_recipe

SUMMARY, NAMES = "dsum", "names"
"""Adapter names, and the built-in tasks they are trained on."""

THREADS = 1
"""For the server and for training each: together they fill two cores."""

_RECIPES: dict[str, dict[str, Any]] = {
    # A hundred rows seen twice: what a first try looks like.
    "hasty": {
        "data": {"task": f"builtin:{SUMMARY}", "rows": 100},
        "method": {"kind": "lora", "r": 8},
        "optim": {"epochs": 2},
    },
    "full": {
        "data": {"task": f"builtin:{SUMMARY}"},
        "method": {"kind": "lora", "r": 8},
        "optim": {"epochs": 3},
    },
    "names": {
        "data": {"task": f"builtin:{NAMES}"},
        "method": {"kind": "prompt", "virtual_tokens": 20},
        "optim": {"epochs": 1},
    },
}


def demo_recipe(name: str, *, base: str, output: Path, threads: int) -> RunConfig:
    """One of the demo's three recipes."""
    recipe = _RECIPES[name]
    adapter = recipe["data"]["task"].removeprefix("builtin:")
    return parse_recipe(
        {
            **recipe,
            "name": f"{adapter}-{name}" if name != adapter else adapter,
            "base": {"path": base},
            "eval": {"generate": {"rows": 32}},
            "runtime": {"threads": threads},
            "output": str(output),
        }
    )
