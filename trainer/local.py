"""Answers rows with a model in this process, for scoring without a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.files import CONFIG_FILE, MANIFEST_FILE
from polygraft.adapters.geometry import describe_base
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest, check_base, parse_manifest
from polygraft.adapters.weights import read_adapter
from polygraft.client.upload import find_adapter
from polygraft.trainer import methods
from polygraft.trainer.data import Example
from polygraft.trainer.encode import encode_prompt
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.frozen_base import FrozenBase, load_frozen_base, load_tokenizer
from polygraft.trainer.generate import Answer
from polygraft.trainer.methods.adapted import Adapted, AdaptedModel
from polygraft.trainer.methods.peft_wrapping import load
from polygraft.trainer.methods.unserved import is_unserved, load_unserved
from polygraft.trainer.scoring import (
    Ask,
    Candidate,
    Prompt,
    prompt_of,
)
from polygraft.trainer.source import build_recipe

_LIMITS = AdapterLimits(max_rank=1024)


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter directory that was checked, and its base without it."""

    base: FrozenBase
    manifest: Manifest | None
    attach: Callable[[], Adapted]
    """Puts the adapter on the base, once."""


def load_candidate(path: Path, base_path: str | None) -> Candidate:
    """The adapter in a run or PEFT directory, on the base it was made for.

    `base_path` is needed where the adapter names its base by a directory. Raises as
    `open_adapter`.
    """
    opened = open_adapter(path, base_path)
    return make_candidate(opened.base, opened.attach(), opened.manifest)


def open_adapter(path: Path, base_path: str | None) -> OpenAdapter:
    """Read an adapter directory and load its base, which stays untouched until `attach`.

    Raises RecipeError when the base cannot be told, and what the strict reader and the base check
    raise.
    """
    files = find_adapter(path)
    manifest = parse_manifest(files[MANIFEST_FILE].read_bytes()) if MANIFEST_FILE in files else None
    base = load_base_of(files, base_path)
    geometry = describe_base(
        base.model, base.model.config, name=base.name, fingerprint=base.fingerprint
    )
    if manifest is not None:
        check_base(manifest, geometry)
    if is_unserved(files):
        return OpenAdapter(base, manifest, lambda: load_unserved(base.model, files))
    read_adapter(files, geometry, _LIMITS, dtype=base.model.dtype)
    return OpenAdapter(base, manifest, lambda: load(base.model, files[CONFIG_FILE].parent))


def make_candidate(
    base: FrozenBase, peft_model: Adapted, manifest: Manifest | None = None
) -> Candidate:
    """An adapter in memory; the base answers with the adapter switched off."""
    ask_base = asker(base, None)

    def ask_bare(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        with peft_model.disable_adapter():
            return ask_base(prompt, rows)

    return Candidate(
        prompt=prompt_of(manifest) if manifest else None,
        ask_base=ask_bare,
        ask_adapter=asker(base, peft_model),
        digest=manifest.digest if manifest else None,
        base=base,
        virtual_tokens=_virtual_tokens(peft_model),
    )


def _virtual_tokens(adapted: Adapted) -> int:
    if isinstance(adapted, AdaptedModel) or not adapted.active_peft_config.is_prompt_learning:
        return 0
    return int(adapted.active_peft_config.num_virtual_tokens)


def asker(base: FrozenBase, peft_model: Adapted | None) -> Ask:
    """Asks a base, with or without an adapter, by rendering rows as the server would."""

    def ask(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        recipe = build_recipe(prompt, base.tokenizer, base.configured_eos)
        generate = methods.generator(base, peft_model, recipe)
        return generate([encode_prompt(row, recipe, base.tokenizer) for row in rows])

    return ask


def load_base_of(files: Mapping[str, Path], base_path: str | None) -> FrozenBase:
    """The base that an adapter names, or the given one. RecipeError when neither says it."""
    config = json.loads(files[CONFIG_FILE].read_text(encoding="utf-8"))
    name = base_path or config.get("base_model_name_or_path")
    if not name:
        raise RecipeError(
            "does not say which base it was made for.",
            file=str(files[CONFIG_FILE]),
            hint="Give it: --base builtin:nano, a directory or a hub id.",
        )
    return load_frozen_base(name, load_tokenizer(name), dtype="fp32", device="cpu")
