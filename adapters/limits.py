"""How large an adapter may be. The server builds one from its config; every refusal quotes it."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Upper bounds that the reader and the upload check before any tensor is mapped.

    `max_bytes` bounds the files of one adapter together. A soft prompt must also stay below half
    of the base's context length, whatever `max_virtual_tokens` says.
    """

    max_rank: int = 256
    max_virtual_tokens: int = 1024
    max_bytes: int = 2 * GIB
    max_files: int = 16
    max_tensors: int = 20_000
    max_uploads: int = 16  # uploads in progress at once
    max_namespace_uploads: int = 4  # of those, of one namespace
    max_staged_bytes: int = 32 * GIB  # declared by all unfinished uploads together
    max_namespace_staged_bytes: int = 8 * GIB
    upload_idle_seconds: int = 3600  # until an upload that nobody goes on with expires

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
