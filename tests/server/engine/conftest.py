"""Bases with PEFT adapters, made once and shared by the engine tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from engine_support.architectures import SERVED
from engine_support.harness import Harness
from engine_support.peft_adapters import save_adapters
from engine_support.solo import Solo, make_solo
from tiny_models import byte_tokenizer, save_base

from polygraft.server.engine.device.path import DevicePath


@dataclass(frozen=True)
class TinyBase:
    """Directories of a base and its adapters by name."""

    base: Path
    adapters: dict[str, Path]

    def harness(self, path: DevicePath | None = None, **settings: object) -> Harness:
        """A stepwise engine with every adapter on the device."""
        harness = Harness(self.base, path, **settings)
        for name, directory in self.adapters.items():
            harness.adapters.load(name, directory)
        return harness


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    directory = tmp_path_factory.mktemp("tiny")
    case = SERVED["llama"]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    return TinyBase(base, save_adapters(base, directory, case.names))


@pytest.fixture(scope="session")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Solo]:
    """What PEFT generates alone for an architecture: computed when first asked for, then kept."""
    return cache(lambda name: make_solo(name, tmp_path_factory.mktemp(name)))
