"""Writes a trained adapter as a plain PEFT directory, and the manifest that makes it a version."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polygraft
from polygraft.adapters.files import PROBES_FILE, REQUIRED_FILES, hash_file

if TYPE_CHECKING:
    from polygraft.adapters.geometry import BaseGeometry
    from polygraft.adapters.manifest import FormatRecord, Manifest, ScoreRecord
    from polygraft.adapters.prompt import PromptRecipe
    from polygraft.trainer.config import RunConfig
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.methods.adapted import Adapted, AdaptedModel
    from polygraft.trainer.mixture import Mixed
    from polygraft.trainer.splits import Splits


UNSERVED = {
    "houlsby": "the server does not compute Houlsby's adapter layers yet",
    "selective": "it changes the base's own weights, and a server has one base for all adapters",
    "full": "it changes the base's own weights, and a server has one base for all adapters",
}
"""Method to why no server takes it."""


def save_adapter(adapted: Adapted, base: FrozenBase, directory: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; those of PEFT's methods load
    with plain PEFT.

    The same weights give the same bytes: PEFT writes target_modules in the order of a set, and the
    path of this machine; both are put right here.
    """
    from peft import PeftModel

    if not isinstance(adapted, PeftModel):
        _save_unserved(adapted, base, directory)
        return
    adapted.save_pretrained(str(directory), save_embedding_layers=False)
    for extra in directory.iterdir():
        if extra.name not in REQUIRED_FILES:
            extra.unlink()  # PEFT's model card template, which says nothing about this run
    path = directory / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.name
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_unserved(adapted: AdaptedModel, base: FrozenBase, directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapted.trained_state().items()}
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {**adapted.settings, "base_model_name_or_path": base.name}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")


def build_manifest(
    directory: Path,
    *,
    config: RunConfig,
    base: FrozenBase,
    geometry: BaseGeometry,
    recipe: PromptRecipe | None,
    splits: Splits,
    mixed: Sequence[Mixed],
    group_key: str | None,
    scores: Sequence[ScoreRecord],
    num_probes: int | None,
    trained_parameters: int,
    parent: str | None,
    minutes: float,
    evidence: Mapping[str, str],
) -> Manifest:
    """The manifest of the adapter in `directory`, whose files are read back as a server would.

    `evidence` are hashes of files that stay in the run, for the provenance.
    """
    import torch

    from polygraft.adapters.limits import AdapterLimits
    from polygraft.adapters.manifest import (
        BaseRecord,
        DataRecord,
        FileRecord,
        FormatRecord,
        Manifest,
        MethodRecord,
        ProbesRecord,
        TokenizerRecord,
    )
    from polygraft.adapters.weights import read_adapter
    from polygraft.trainer.run_directory import config_sha256

    unserved = UNSERVED.get(config.method.kind)
    limits = AdapterLimits(max_rank=1024)
    weights = None
    kind: Any = config.method.kind
    if not unserved:
        weights = read_adapter(directory, geometry, limits, dtype=torch.float32)
        kind = weights.kind
    peft_config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    tokenizer = base.tokenizer
    return Manifest(
        schema="polygraft.adapter/1",
        kind=kind,
        servable=not unserved,
        files=tuple(
            FileRecord(name=path.name, size=path.stat().st_size, sha256=hash_file(path))
            for path in sorted(directory.iterdir())
        ),
        format=FormatRecord(
            peft_type=str(peft_config["peft_type"]),
            peft_version=version("peft"),
            max_rank=weights.max_rank,
            virtual_token_count=weights.num_virtual_tokens,
            tensor_count=weights.tensor_count,
            modules=tuple(sorted({name.rpartition(".")[2] for name in weights.modules})),
        )
        if weights
        else _unserved_format(directory, str(peft_config["peft_type"])),
        base=BaseRecord(
            name=base.name,
            weights_sha256=base.fingerprint.weights_sha256,
            config_sha256=base.fingerprint.config_sha256,
            dtype=geometry.dtype,
            declared=True,
        ),
        tokenizer=TokenizerRecord(
            behaviour_sha256=base.fingerprint.tokenizer_sha256,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=base.eos_token_ids,
        ),
        prompt=recipe,
        data=tuple(
            DataRecord(
                split=name, rows=len(rows), sha256=splits.hashes()[name], group_key=group_key
            )
            for name, rows in splits.named().items()
        )
        + tuple(
            DataRecord(split=f"mixture:{p.ingredient.name}", rows=len(p.rows), sha256=p.sha256)
            for p in mixed
        ),
        method=MethodRecord(
            name=config.method.kind,
            config_sha256=config_sha256(config),
            trainable_params=trained_parameters,
            seeds={"run": config.seed},
        ),
        scores=tuple(scores),
        probes=None
        if num_probes is None
        else ProbesRecord(file=PROBES_FILE, count=num_probes, dtype=geometry.dtype),
        provenance={
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "trainer": f"polygraft {polygraft.__version__}",
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "python": platform.python_version(),
            "device": base.model.device.type,
            "minutes": f"{minutes:.2f}",
            **({"parent": parent} if parent else {}),
            **evidence,
            **({"not_servable": unserved} if unserved else {}),
        },
    )


def _unserved_format(directory: Path, peft_type: str) -> FormatRecord:
    """Of an adapter that no server reads: what its file says."""
    from safetensors import safe_open

    from polygraft.adapters.manifest import FormatRecord

    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    leaves = sorted({name.split(".")[-2] for name in names if "." in name})
    return FormatRecord(peft_type=peft_type, tensor_count=len(names), modules=tuple(leaves))
