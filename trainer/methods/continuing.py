"""Starts a run from an earlier one: a LoRA goes on as that LoRA, changed weights from those.

What an adapter computes must not change at the border of two rounds, so everything that its
function depends on has to agree; a difference is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, hash_file
from polygraft.adapters.manifest import check_base, parse_manifest
from polygraft.client.upload import find_adapter
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.adapted import Adapted, AdaptedModel, ChangedModel
from polygraft.trainer.methods.peft_wrapping import load_tensors, saved_tensors

if TYPE_CHECKING:
    from polygraft.adapters.geometry import BaseGeometry

_PEFT_SETTINGS = {
    # adapter_config.json: the recipe
    "r": "method.r",
    "lora_alpha": "method.alpha",
    "use_rslora": "method.rslora",
    "use_dora": "method.dora",
    "rank_pattern": "method.rank_pattern",
    "alpha_pattern": "method.alpha_pattern",
    "num_virtual_tokens": "method.virtual_tokens",
}
_OWN_SETTINGS = {"bottleneck": "method.bottleneck", "where": "method.where"}
_SHOWN = 3


def continue_from(adapted: Adapted, earlier: Path, geometry: BaseGeometry) -> str:
    """Put the tensors of an earlier run or adapter directory into a fresh adapter; its digest.

    Raises RecipeError naming what differs, AdapterIncompatible when it was made for another base,
    AdapterInvalid when it is incomplete.
    """
    files = _files(earlier)
    digest = f"sha256:{hash_file(files[WEIGHTS_FILE])}"
    if MANIFEST_FILE in files:
        manifest = parse_manifest(files[MANIFEST_FILE].read_bytes())
        check_base(manifest, geometry)
        digest = manifest.digest
    config = json.loads(files[CONFIG_FILE].read_text(encoding="utf-8"))
    _check_settings(adapted, config, earlier)
    tensors = load_file(files[WEIGHTS_FILE])
    _check_tensors(_own_tensors(adapted), tensors, earlier)
    if isinstance(adapted, PeftModel):
        load_tensors(adapted, tensors)
    else:
        adapted.load_trained(tensors)
        if isinstance(adapted, ChangedModel):
            adapted.anchor_here()
    return digest


def _files(earlier: Path) -> dict[str, Path]:
    if not earlier.is_dir():
        raise RecipeError("there is no such directory.", file=str(earlier), item="init_from")
    try:
        return find_adapter(earlier)
    except AdapterInvalid as error:
        raise RecipeError(
            f"holds no adapter to go on from: {error}",
            file=str(earlier),
            item="init_from",
            hint="Name a complete run, or a PEFT directory.",
        ) from error


def _check_settings(adapted: Adapted, theirs: Mapping[str, Any], earlier: Path) -> None:
    if isinstance(adapted, PeftModel):
        ours: dict[str, Any] = adapted.active_peft_config.to_dict()
        names = _PEFT_SETTINGS
    else:
        ours, names = adapted.settings, _OWN_SETTINGS
    kind, found = _plain(ours["peft_type"]), theirs.get("peft_type")
    if kind == "P_TUNING":
        raise _refused(
            "was made by an encoder, which p_tuning does not save.",
            earlier,
            "method.kind",
        )
    if kind != found:
        raise _refused(
            f"holds {_named(found)}, and this recipe trains {_named(kind)}.", earlier, "method.kind"
        )
    for key, item in names.items():
        # A file of an older PEFT may lack a key that it did not know.
        if key in ours and key in theirs and _plain(ours[key]) != _plain(theirs[key]):
            raise _refused(
                f"has {key} {theirs[key]}, and this recipe {_plain(ours[key])}.", earlier, item
            )


def _own_tensors(adapted: Adapted) -> Mapping[str, torch.Tensor]:
    return adapted.trained_state() if isinstance(adapted, AdaptedModel) else saved_tensors(adapted)


def _check_tensors(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], earlier: Path
) -> None:
    if missing := sorted(ours.keys() ^ theirs.keys()):
        shown = ", ".join(missing[:_SHOWN])
        raise _refused(
            f"trains other parts of the base: {len(missing)} tensors are only in one of the two, "
            f"such as {shown}.",
            earlier,
            "method",
        )
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise _refused(
                f"has {name} of shape {list(theirs[name].shape)}, and this recipe "
                f"{list(tensor.shape)}.",
                earlier,
                "method",
            )
        if not bool(torch.isfinite(theirs[name]).all()):
            raise _refused(f"holds NaN or infinite values in {name}.", earlier, "init_from")


def _refused(text: str, earlier: Path, item: str) -> RecipeError:
    return RecipeError(
        f"this run cannot go on from that adapter: it {text}",
        file=str(earlier),
        item=item,
        hint="Give the next round the method of the earlier one, or leave init_from out.",
    )


def _plain(value: Any) -> Any:
    """As it stands in JSON: enums by their value, tuples as lists."""
    value = getattr(value, "value", value)
    return list(value) if isinstance(value, tuple | set) else value


def _named(kind: object) -> str:
    names = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
    return names.get(str(kind), str(kind).lower())
