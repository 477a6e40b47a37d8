"""PEFT's plain formula for one layer of an adapter, in float64 from the very files.

    y += lora_alpha / r * B (A x)            lora_alpha / sqrt(r) with use_rslora

For adapters that bring no probes. Shares nothing with the way that serves but the pattern matcher:
neither the reader's tensors nor the kernels. It shows that the files are applied as PEFT would, not
that they are what was trained.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE, read_json
from polygraft.adapters.patterns import PatternMap

_PAIR = re.compile(r"base_model\.model\.(.+)\.lora_A\.weight")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NOT_PLAIN = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")


class PlainReference:
    """What one adapter adds, by the formula. Files are those of a validated upload."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._config: dict[str, Any] = dict(read_json(files[CONFIG_FILE], CONFIG_FILE))
        self._weights = files[WEIGHTS_FILE]
        self.modules = self._one_layer()

    @property
    def is_plain(self) -> bool:
        """Whether the formula is all that the adapter does to a linear module."""
        return not any(self._config.get(key) for key in _NOT_PLAIN)

    def update(self, module: str, x: Tensor) -> Tensor:
        """x: [num_rows, in_features] -> [num_rows, out_features], float64."""
        with safe_open(self._weights, framework="pt") as file:
            a, b = (
                file.get_tensor(f"base_model.model.{module}.lora_{side}.weight").double()
                for side in "AB"
            )
        update: Tensor = self._scaling(module, len(a)) * (x.double() @ a.T) @ b.T
        return update

    def prompt(self) -> Tensor:
        """The rows of a soft prompt, [num_virtual_tokens, hidden_size], as stored."""
        with safe_open(self._weights, framework="pt") as file:
            rows: Tensor = file.get_tensor("prompt_embeddings")
        return rows

    def prefix(self) -> Tensor:
        """The keys and values of a prefix in front of the first layer,
        [2, kv_heads, num_virtual_tokens, head_dim], as stored."""
        rows, heads = self.prompt(), int(self._config["num_attention_heads"])
        width = rows.shape[1] // (2 * int(self._config["num_layers"]))
        keys, values = rows[:, :width], rows[:, width : 2 * width]
        parts = [part.reshape(len(rows), heads, -1).transpose(0, 1) for part in (keys, values)]
        return torch.stack(parts)

    def _one_layer(self) -> tuple[str, ...]:
        """The adapted modules of the layer that has most of them; the first of equal ones."""
        with safe_open(self._weights, framework="pt") as file:
            matches = [_PAIR.fullmatch(name) for name in file.keys()]  # noqa: SIM118
        modules = sorted(match.group(1) for match in matches if match)
        layers = [_layer(module) for module in modules]
        if not modules:
            return ()
        [(most, _)] = Counter(layers).most_common(1)
        return tuple(m for m, layer in zip(modules, layers, strict=True) if layer == most)

    def _scaling(self, module: str, rank: int) -> float:
        patterns = PatternMap(
            "alpha_pattern", self._config.get("alpha_pattern") or {}, self._config["lora_alpha"]
        )
        alpha = float(patterns.values(module)[0])
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank


def _layer(module: str) -> str:
    found = _NUMBER.search(module)
    return found.group(1) if found else ""
