"""Adapter directories: saved by PEFT itself, or written by hand to be wrong in one way."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from engine_support.architectures import SERVED
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE, find_files, hash_file
from polygraft.adapters.fingerprint import Fingerprint
from polygraft.adapters.geometry import BaseGeometry, LinearShape, describe_base
from polygraft.adapters.uploads import FileDeclaration, PublishedUpload, UploadHeader, Uploads

FINGERPRINT = Fingerprint("a" * 64, "b" * 64, "c" * 64)
HIDDEN = 8
MODULE = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


@contextlib.contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """PEFT warns about choices that tests make on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_model(architecture: str, config: PeftConfig, *, seed: int = 0) -> PeftModel:
    """A random base of the architecture with a random adapter that changes its output."""
    base = SERVED[architecture].build()
    torch.manual_seed(seed)
    with peft_warnings_ignored():
        model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "prompt_encoder" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def save(model: PeftModel, directory: Path, **arguments: Any) -> Path:
    """What a user does; returns the directory."""
    with peft_warnings_ignored():
        model.save_pretrained(directory, **arguments)
    return directory


def geometry_of(model: nn.Module) -> BaseGeometry:
    """The geometry of a transformers model, with a made-up fingerprint."""
    return describe_base(model, model.config, name="tiny", fingerprint=FINGERPRINT)  # type: ignore[arg-type]


def small_geometry() -> BaseGeometry:
    """A base of three modules that exists only on paper."""
    return BaseGeometry(
        name="paper",
        architecture="PaperForCausalLM",
        modules={
            MODULE: LinearShape(HIDDEN, 4, "linear"),
            "model.layers.0.mlp.down_proj": LinearShape(16, HIDDEN, "linear"),
            "lm_head": LinearShape(HIDDEN, 32, "lm_head"),
        },
        hidden_size=HIDDEN,
        num_layers=1,
        vocab_size=32,
        context_length=64,
        dtype="float32",
        fingerprint=FINGERPRINT,
    )


def lora_config(**changes: Any) -> dict[str, Any]:
    """adapter_config.json of a LoRA of rank 2 with alpha 4, exactly as PEFT writes it."""
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    written: dict[str, Any] = {**settings.to_dict(), **changes}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in written.items()}


def lora_tensors(rank: int = 2, module: str = MODULE, seed: int = 0) -> dict[str, Tensor]:
    """One LoRA pair for `small_geometry`."""
    generator = torch.Generator().manual_seed(seed)
    shape = small_geometry().modules.get(module, LinearShape(HIDDEN, 4, "linear"))
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(
            rank, shape.in_features, generator=generator
        ),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(
            shape.out_features, rank, generator=generator
        ),
    }


def write_adapter(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """A directory with this config and these tensors; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config or lora_config()))
    save_file(dict(tensors or lora_tensors()), directory / WEIGHTS_FILE)
    return directory


def header_of(files: Mapping[str, Path], name: str, **options: Any) -> UploadHeader:
    """A truthful header for files by name."""
    declared = (
        FileDeclaration(file, path.stat().st_size, hash_file(path)) for file, path in files.items()
    )
    return UploadHeader(name, tuple(declared), **options)


def push(uploads: Uploads, directory: Path, name: str, **options: Any) -> PublishedUpload:
    """Uploads a directory in small chunks, as a client would."""
    options.setdefault("allow_unverified_base", True)
    files = find_files(directory)
    header = header_of(files, name, **options)
    known = uploads.published(header)
    if known is not None:
        return known
    upload = uploads.begin(header)
    try:
        for index, path in enumerate(files.values()):
            data = path.read_bytes()
            for offset in range(0, len(data), 1000):
                upload.write(index, offset, data[offset : offset + 1000])
        return upload.finish()
    finally:
        uploads.end(upload)
