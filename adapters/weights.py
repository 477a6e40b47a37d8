"""Reads a PEFT folder into tensors, exactly as PEFT would apply it, or refuses it by name.

The tensors are the truth: which modules have an adapter and with what rank is read from them,
never re-resolved from the config. Every tensor must be consumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from polygraft.adapters.base_changes import Changes
from polygraft.adapters.change_reading import read_changes
from polygraft.adapters.checks import PROMPT_TENSOR, LoraTensors, check_lora
from polygraft.adapters.config import (
    LoraSettings,
    PrefixSettings,
    Problems,
    PromptSettings,
    Settings,
    parse_config,
)
from polygraft.adapters.errors import AdapterInvalid, raise_all
from polygraft.adapters.files import (
    CONFIG_FILE,
    REQUIRED_FILES,
    WEIGHTS_FILE,
    check_complete,
    check_magic,
    find_files,
    read_json,
)
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.low_rank import LoraModule
from polygraft.adapters.safetensors_header import TensorEntry, read_header
from polygraft.adapters.tensor_buffer import TensorBuffer
from polygraft.adapters.virtual_checks import check_prefix, check_prompt


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All tensors of one adapter version in the serving dtype, on the host.

    `modules` maps dotted module names of the base to their update. `prompt_embeddings`
    [num_virtual_tokens, hidden_size] are the rows put in front of a sequence; `prefix`
    [num_layers, 2, kv_heads, num_virtual_tokens, head_dim] the keys and values that take their
    place in the cache, after position encoding as the layers compute them. `changes` is what it
    changes besides, and `num_tensors` how many tensors its file has.
    """

    kind: Literal["lora", "soft_prompt", "prefix"]
    modules: dict[str, LoraModule] = field(default_factory=dict)
    prompt_embeddings: Tensor | None = None
    prefix: Tensor | None = None
    changes: Changes = field(default_factory=Changes)
    num_tensors: int | None = None  # None: two for a module, one for virtual tokens

    @property
    def max_rank(self) -> int:
        """The largest rank of any module; 0 without LoRA."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def num_virtual_tokens(self) -> int:
        """Virtual tokens of the soft prompt or prefix; 0 for a LoRA."""
        if self.prefix is not None:
            return int(self.prefix.shape[3])
        return 0 if self.prompt_embeddings is None else int(self.prompt_embeddings.shape[0])

    @property
    def tensor_count(self) -> int:
        """Tensors in the file: two per adapted module, one for a soft prompt or prefix."""
        if self.num_tensors is not None:
            return self.num_tensors
        return 2 * len(self.modules) + len(self._virtual)

    @property
    def has_effect(self) -> bool:
        """Whether it can change any output; virtual tokens always can."""
        low_rank = any(module.has_effect for module in self.modules.values())
        return bool(self._virtual) or low_rank or bool(self.changes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        loras = sum(m.lora_a.nbytes + m.lora_b.nbytes for m in self.modules.values())
        return loras + sum(tensor.nbytes for tensor in self._virtual) + self.changes.nbytes

    @property
    def _virtual(self) -> list[Tensor]:
        return [tensor for tensor in (self.prompt_embeddings, self.prefix) if tensor is not None]


def read_adapter(
    files: Mapping[str, Path] | Path,
    geometry: BaseGeometry,
    limits: AdapterLimits,
    *,
    dtype: torch.dtype,
    allow_no_effect: bool = False,
) -> AdapterWeights:
    """The weights of an adapter, cast to `dtype`; `files` is a PEFT directory or name -> path.

    Cheap checks first: file kinds, JSON, safetensors header, config, names and shapes against
    the base, then values. Raises AdapterInvalid, AdapterUnsupported or AdapterIncompatible with
    every problem found at the first failing stage. `allow_no_effect` admits a LoRA that changes
    nothing (reason NO_EFFECT otherwise).
    """
    if isinstance(files, Path):
        files = find_files(files)
    settings, entries = read_declarations(files, limits)
    if isinstance(settings, PromptSettings):
        check_prompt(settings, entries, geometry, limits)
        rows = _read_virtual(files[WEIGHTS_FILE], dtype)
        return AdapterWeights(kind="soft_prompt", prompt_embeddings=rows)
    if isinstance(settings, PrefixSettings):
        check_prefix(settings, entries, geometry, limits)
        rows = _read_virtual(files[WEIGHTS_FILE], dtype)
        return AdapterWeights(kind="prefix", prefix=_by_layer(rows, settings))
    tensors = check_lora(settings, entries, geometry, limits)
    # Not with tensors beside the pairs: copies of base weights among them are dropped at once.
    is_plain = not tensors.located and geometry.head.name not in tensors.pairs
    buffer = TensorBuffer(files[WEIGHTS_FILE], entries, dtype) if is_plain else None
    if buffer is not None and buffer.is_finite:
        weights = AdapterWeights("lora", _low_rank(buffer, settings, tensors))
    else:
        weights = _read_lora(files[WEIGHTS_FILE], settings, tensors, geometry, dtype)
    if not weights.has_effect and not allow_no_effect:
        raise _no_effect()
    return weights


def read_declarations(
    files: Mapping[str, Path], limits: AdapterLimits
) -> tuple[Settings, list[TensorEntry]]:
    """What config and header say, all of it that can be checked without a base: file kinds, JSON,
    safetensors header, config. Raises AdapterInvalid or AdapterUnsupported."""
    check_complete(files)
    for name in REQUIRED_FILES:
        check_magic(files[name], name)
    settings = parse_config(read_json(files[CONFIG_FILE], CONFIG_FILE))
    return settings, read_header(files[WEIGHTS_FILE], WEIGHTS_FILE, max_tensors=limits.max_tensors)


def _read_virtual(path: Path, dtype: torch.dtype) -> Tensor:
    """The tensor of a soft prompt or prefix, a row per virtual token."""
    problems: Problems = []
    with safe_open(path, framework="pt") as file:
        rows = _cast(file.get_tensor(PROMPT_TENSOR), PROMPT_TENSOR, dtype, problems)
    raise_all(problems)
    return rows


def _by_layer(rows: Tensor, settings: PrefixSettings) -> Tensor:
    """rows: [num_virtual_tokens, 2 * num_layers * token_dim] -> as `AdapterWeights.prefix`.

    Source: PeftModel.get_prompt; keys stand before values in each layer.
    """
    heads = settings.kv_heads
    tokens = rows.view(-1, settings.num_layers, 2, heads, settings.token_dim // heads)
    return tokens.permute(1, 2, 3, 0, 4).contiguous()


def _low_rank(
    buffer: TensorBuffer, settings: LoraSettings, tensors: LoraTensors
) -> dict[str, LoraModule]:
    """The modules of a file that is nothing but low-rank pairs, finite all of them."""
    modules = {
        name: LoraModule(buffer[a], buffer[b], settings.scaling(name, a.shape[0]))
        for name, (a, b) in tensors.pairs.items()
    }
    problems: Problems = []
    for name, module in modules.items():
        rank, width = module.lora_a.shape
        # No |B_i| is above largest * sqrt(rank), and no |A| above largest * sqrt(rank * width).
        bound = abs(module.scaling) * buffer.largest**2 * rank * width**0.5
        if not bound < torch.finfo(module.lora_a.dtype).max:
            problems.extend(_check_magnitude(name, module))
    raise_all(problems)
    return modules


def _read_lora(
    path: Path,
    settings: LoraSettings,
    tensors: LoraTensors,
    geometry: BaseGeometry,
    dtype: torch.dtype,
) -> AdapterWeights:
    problems: Problems = []
    modules = {}
    with safe_open(path, framework="pt") as file:

        def read(entry: TensorEntry) -> Tensor:
            return _cast(file.get_tensor(entry.name), entry.name, dtype, problems)

        for name, (a, b) in tensors.pairs.items():
            module = LoraModule(read(a), read(b), settings.scaling(name, a.shape[0]))
            modules[name] = module
            if not problems:
                problems.extend(_check_magnitude(name, module))
        changes = read_changes(read, tensors.located, modules, settings, geometry, problems)
    raise_all(problems)
    modules.pop(geometry.head.name, None)  # it is one of the changes
    num_tensors = 2 * len(tensors.pairs) + len(tensors.located)
    return AdapterWeights("lora", modules, changes=changes, num_tensors=num_tensors)


def _cast(tensor: Tensor, name: str, dtype: torch.dtype, problems: Problems) -> Tensor:
    """A private copy in `dtype`; a NaN or Inf before or after the cast is a problem.

    Why refuse: 0 * Inf = NaN, so one bad row of the shared pool would poison the rows of other
    adapters in the same tile.
    """
    if not bool(torch.isfinite(tensor).all()):
        problems.append(_bad_value("holds NaN or infinite values.", name, "finite values"))
    cast = tensor.to(dtype, copy=True).contiguous()
    if not problems and not bool(torch.isfinite(cast).all()):
        largest = torch.finfo(dtype).max
        problems.append(
            _bad_value(f"overflows {dtype} (largest {largest:g}) when cast.", name, largest)
        )
    return cast


def _check_magnitude(name: str, module: LoraModule) -> Problems:
    """The update of an input of length 1 must stay inside the dtype: |s| max_i|B_i| |A|_F."""
    a = torch.linalg.vector_norm(module.lora_a, dtype=torch.float64)
    b = torch.linalg.vector_norm(module.lora_b, dim=1, dtype=torch.float64).max()
    bound = abs(module.scaling) * float(a) * float(b)
    largest = torch.finfo(module.lora_a.dtype).max
    if bound < largest:
        return []
    what = f"scaling times weights reaches {bound:g} (allowed: below {largest:g})."
    return [_bad_value(what, name, f"below {largest:g}")]


def _bad_value(message: str, item: str, allowed: object) -> AdapterInvalid:
    return AdapterInvalid(
        message,
        file=WEIGHTS_FILE,
        item=item,
        allowed=allowed,
        hint="The training diverged; use an earlier checkpoint.",
    )


def _no_effect() -> AdapterInvalid:
    return AdapterInvalid(
        "the adapter changes nothing: in every module A, B or the scale is zero.",
        reason="NO_EFFECT",
        file=WEIGHTS_FILE,
        hint="It was saved before training, or its gradients never arrived. Set allow_no_effect "
        "to publish an identity adapter on purpose.",
    )
