"""Versions as the trainer ships them: a PEFT directory, its probes by PEFT itself, a manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from polygraft.adapters.files import (
    CONFIG_FILE,
    MANIFEST_FILE,
    PROBES_FILE,
    WEIGHTS_FILE,
    find_files,
)
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest, canonical_json, minimal_manifest, record_files
from polygraft.adapters.probes import Probes, write_probes
from polygraft.adapters.weights import read_adapter
from polygraft.trainer.probes import make_probes


@dataclass(frozen=True)
class Trained:
    """A directory that is uploaded as a whole; spoil it, then `sign` it."""

    directory: Path

    def edit_config(self, **changes: Any) -> Trained:
        """Other values in adapter_config.json than those of the training."""
        path = self.directory / CONFIG_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return self

    def edit_tensors(self, change: Callable[[str, Tensor], Tensor]) -> Trained:
        """Other weights than those of the training."""
        path = self.directory / WEIGHTS_FILE
        tensors = {n: change(n, t).contiguous() for n, t in load_file(path).items()}
        save_file(tensors, path)
        return self

    def sign(self, geometry: BaseGeometry) -> Trained:
        """Write the manifest of the files as they are now, made for this base."""
        files = find_files(self.directory)
        files.pop(MANIFEST_FILE, None)
        weights = read_adapter(files, geometry, AdapterLimits(), dtype=torch.float32)
        records = record_files(files)
        plain = tuple(record for record in records if record.name != PROBES_FILE)
        bare = minimal_manifest(files, weights, plain)
        fingerprint = geometry.fingerprint
        values = bare.model_dump(mode="json", by_alias=True, exclude_unset=True) | {
            "files": [record.model_dump() for record in records],
            "base": {
                "weights_sha256": fingerprint.weights_sha256,
                "config_sha256": fingerprint.config_sha256,
                "declared": True,
            },
            "tokenizer": {"behaviour_sha256": fingerprint.tokenizer_sha256},
        }
        if PROBES_FILE in files:
            values["probes"] = {"file": PROBES_FILE, "count": 8, "dtype": "float32"}
        manifest = Manifest.model_validate_json(json.dumps(values))
        (self.directory / MANIFEST_FILE).write_bytes(canonical_json(manifest))
        return self


def peft_of(base: Path, adapter: Path) -> PeftModel:
    """PEFT's own model in float32."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    )
    model.train(False)
    return model


def probes_of(base: Path, adapter: Path, prompts: Sequence[Sequence[int]]) -> Probes:
    """What PEFT computes for these prompts on a base in float32."""
    peft_model = peft_of(base, adapter)
    context = peft_model.get_base_model().config.max_position_embeddings
    return make_probes(peft_model, prompts, context_length=context)


def copy_with_probes(adapter: Path, probes: Probes, directory: Path) -> Trained:
    """The adapter's files and its probes in a directory of their own."""
    directory.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copy(adapter / name, directory / name)
    write_probes(probes, directory / PROBES_FILE)
    return Trained(directory)
