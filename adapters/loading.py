"""From a version digest to tensors: what residency's loader threads run."""

from __future__ import annotations

from collections.abc import Callable

from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import check_base
from polygraft.adapters.registry import Registry
from polygraft.adapters.weights import AdapterWeights, read_adapter


def version_reader(
    registry: Registry, geometry: BaseGeometry, limits: AdapterLimits
) -> Callable[[str], AdapterWeights]:
    """A function that reads a published version, in the serving dtype, with all checks again.

    Why again: the store may have been filled by a server with another base, other limits or
    another version of these checks. Only NO_EFFECT is not asked twice: publishing allowed it.
    """

    def read(digest: str) -> AdapterWeights:
        check_base(registry.manifest(digest), geometry)
        return read_adapter(
            registry.files(digest),
            geometry,
            limits,
            dtype=geometry.torch_dtype,
            allow_no_effect=True,
        )

    return read
