"""Tests that need a CUDA device: `make gpu-check`. Elsewhere they are named as not run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from engine_support.solo import Solo, make_solo

from polygraft.server.engine.device.path import DevicePath, cuda_path


@pytest.fixture(scope="session")
def path() -> DevicePath:
    """The first GPU with the Triton kernels."""
    return cuda_path("cuda")


@pytest.fixture(scope="session")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Solo]:
    """What PEFT generates alone for an architecture: computed when first asked for, then kept."""
    return cache(lambda name: make_solo(name, tmp_path_factory.mktemp(name)))
