"""A store with very many adapters for one base, made once and cached beside the base.

The first adapters differ in their weights; those
behind them share weights and differ in their config, so they are versions of their own all the
same.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.adapters.manifest import (
    SCHEMA,
    BaseRecord,
    FormatRecord,
    Manifest,
    record_files,
)
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore

RANK = 8
TARGET_MODULES = ("q_proj", "v_proj")  # what PEFT chooses for a llama by itself
ITEM_BYTES = 2


def name_of(index: int) -> str:
    """The adapter's name."""
    return f"adapter-{index:05d}"


def version_bytes(base: Path) -> int:
    """What the tensors of one version take."""
    return ITEM_BYTES * sum(rows * columns for rows, columns in _shapes(base).values())


def prepare_store(base: Path, *, num_distinct: int, num_registered: int, seed: int) -> Path:
    """The store's directory; made, and published by a rename, if it is not there."""
    folder = base.parent / f"store-{num_distinct}-{num_registered}-{seed}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=base.parent) as made:
            store = Path(made) / "store"
            with patch("os.fsync"):  # it would take an hour, and can be made again
                _fill(store, base, num_distinct, num_registered, seed)
            shutil.move(store, folder)
    return folder


def _fill(store: Path, base: Path, num_distinct: int, num_registered: int, seed: int) -> None:
    registry = Registry(LocalStore(store))
    generator = torch.Generator().manual_seed(seed)
    shapes = _shapes(base)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=list(TARGET_MODULES),
            task_type="CAUSAL_LM",
        ).save_pretrained(str(folder))
        config = json.loads((folder / CONFIG_FILE).read_text())
        for index in range(num_distinct):
            weights = folder / f"{index}.safetensors"
            _write_weights(weights, shapes, generator)
            for number in range(index, num_registered, num_distinct):
                text = json.dumps({**config, "revision": str(number)})
                (folder / CONFIG_FILE).write_text(text)
                files = {CONFIG_FILE: folder / CONFIG_FILE, WEIGHTS_FILE: weights}
                registry.publish(name_of(number), _manifest(files, len(shapes)), files)
            weights.unlink()


def _shapes(base: Path) -> dict[str, tuple[int, int]]:
    """Of every tensor, by its name as PEFT writes it."""
    config = json.loads((base / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = {"q_proj": hidden, "v_proj": hidden // heads * config["num_key_value_heads"]}
    shapes = {}
    for layer in range(config["num_hidden_layers"]):
        for module in TARGET_MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{name}.lora_A.weight"] = (RANK, hidden)
            shapes[f"{name}.lora_B.weight"] = (width[module], RANK)
    return shapes


def _write_weights(
    path: Path, shapes: Mapping[str, tuple[int, int]], generator: torch.Generator
) -> None:
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(tensors, path)


def _manifest(files: Mapping[str, Path], num_tensors: int) -> Manifest:
    """That of a PEFT directory which does not name its base."""
    return Manifest(
        schema=SCHEMA,
        kind="lora",
        servable=True,
        files=record_files(files),
        format=FormatRecord(
            peft_type="LORA", max_rank=RANK, tensor_count=num_tensors, modules=TARGET_MODULES
        ),
        base=BaseRecord(declared=False),
    )
