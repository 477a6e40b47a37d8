"""How the corpus asks PEFT for an adapter, and what it does to a folder afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig, PeftConfig, TaskType
from safetensors.torch import load_file, save_file

from engine_support.adapter_corpus import Names
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE

TOKENS = [3, 17, 40]  # whose embeddings are trained


def lora(names: Names, targets: object = None, **settings: Any) -> LoraConfig:
    """A small LoRA on two projections, or on `targets`."""
    settings = {"r": 4, "lora_alpha": 6, "task_type": TaskType.CAUSAL_LM, **settings}
    return LoraConfig(target_modules=names.both if targets is None else targets, **settings)


def plain_lora(**settings: Any) -> Callable[[Names], PeftConfig]:
    return lambda names: lora(names, **settings)


def other(method: str, **settings: Any) -> Callable[[Names], PeftConfig]:
    config: Any = getattr(peft, method + "Config")
    return lambda names: config(task_type=TaskType.CAUSAL_LM, **settings)


def renamed(replace: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        file = directory / WEIGHTS_FILE
        save_file({replace(name): value for name, value in load_file(file).items()}, file)

    return edit


def with_settings(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / CONFIG_FILE).read_text())
        (directory / CONFIG_FILE).write_text(json.dumps({**config, **changes}))

    return edit
