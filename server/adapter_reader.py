"""How the residency reads a version of this server's store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import check_base
from polygraft.adapters.registry import Registry
from polygraft.adapters.weights import AdapterWeights, read_adapter
from polygraft.server.engine.engine import Engine


def reader_of(
    registry: Registry,
    engine: Engine,
    limits: AdapterLimits,
    under_test: Callable[[str], Mapping[str, Path] | None],
) -> Callable[[str], AdapterWeights]:
    """How the residency reads a version: the store may have been filled for another base."""

    def read(digest: str) -> AdapterWeights:
        files = under_test(digest)
        if files is None:
            check_base(registry.manifest(digest), engine.geometry)
            files = registry.files(digest)
        return read_adapter(
            files,
            engine.geometry,
            limits,
            dtype=engine.base.dtype,
            allow_no_effect=True,  # whether that is wanted was decided when it was published
        )

    return read
