"""Writes a trained adapter as a plain PEFT directory, and the manifest that makes it a version."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polygraft
from polygraft.adapters.files import PROBES_FILE, REQUIRED_FILES, hash_file

if TYPE_CHECKING:
    from peft import PeftModel

    from polygraft.adapters.geometry import BaseGeometry
    from polygraft.adapters.manifest import Manifest, ScoreRecord
    from polygraft.adapters.prompt import PromptRecipe
    from polygraft.trainer.config import RunConfig
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.splits import Splits


def save_adapter(peft_model: PeftModel, base: FrozenBase, directory: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; loads with plain PEFT.

    The same weights give the same bytes: PEFT writes target_modules in the order of a set, and the
    path of this machine; both are put right here.
    """
    peft_model.save_pretrained(str(directory), save_embedding_layers=False)
    for extra in directory.iterdir():
        if extra.name not in REQUIRED_FILES:
            extra.unlink()  # PEFT's model card template, which says nothing about this run
    path = directory / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.name
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def build_manifest(
    directory: Path,
    *,
    config: RunConfig,
    base: FrozenBase,
    geometry: BaseGeometry,
    recipe: PromptRecipe | None,
    splits: Splits,
    group_key: str | None,
    scores: Sequence[ScoreRecord],
    num_probes: int,
    minutes: float,
) -> Manifest:
    """The manifest of the adapter in `directory`, whose files are read back as a server would."""
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

    weights = read_adapter(directory, geometry, AdapterLimits(max_rank=1024), dtype=torch.float32)
    peft_config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    tokenizer = base.tokenizer
    return Manifest(
        schema="polygraft.adapter/1",
        kind=weights.kind,
        servable=True,
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
        ),
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
        ),
        method=MethodRecord(
            name=config.method.kind,
            config_sha256=config_sha256(config),
            trainable_params=_num_parameters(weights),
            seeds={"run": config.seed},
        ),
        scores=tuple(scores),
        probes=ProbesRecord(file=PROBES_FILE, count=num_probes, dtype=geometry.dtype),
        provenance={
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "trainer": f"polygraft {polygraft.__version__}",
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "python": platform.python_version(),
            "device": base.model.device.type,
            "minutes": f"{minutes:.2f}",
        },
    )


def _num_parameters(weights: Any) -> int:
    if weights.prompt_embeddings is not None:
        return int(weights.prompt_embeddings.numel())
    return sum(
        math.prod(m.lora_a.shape) + math.prod(m.lora_b.shape) for m in weights.modules.values()
    )
