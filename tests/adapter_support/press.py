"""Adapters in any number, for tests of the registry."""

from __future__ import annotations

from pathlib import Path

import torch

from adapter_support.directories import lora_config, small_geometry, write_adapter
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import Manifest, minimal_manifest, record_files
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.weights import read_adapter


class Press:
    """Makes adapters whose content differs by a number, and publishes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, content: int) -> tuple[Manifest, dict[str, Path]]:
        directory = self.folder / f"content-{content}"
        files = find_files(write_adapter(directory, lora_config(lora_alpha=content)))
        weights = read_adapter(files, small_geometry(), AdapterLimits(), dtype=torch.float32)
        return minimal_manifest(files, weights, record_files(files)), files

    def config_of(self, content: int) -> bytes:
        """The bytes of the one file that differs between contents."""
        return (self.folder / f"content-{content}" / "adapter_config.json").read_bytes()

    def publish(self, registry: Registry, name: str, content: int) -> VersionRecord:
        return registry.publish(name, *self.make(content))
