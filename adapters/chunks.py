"""The pieces in which files travel: at most 1 MiB, each with its CRC-32C (RFC 3720).

The CRC finds bytes that changed on their way while they can still be sent again; what is published
is decided by the sha256 of whole files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from polygraft.adapters.errors import UploadCorrupt

CHUNK_BYTES = 1 << 20


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes."""
    return int(google_crc32c.value(data))


def extend_crc32c(crc: int, data: bytes) -> int:
    """CRC-32C of the bytes that `crc` is of, followed by `data`."""
    return int(google_crc32c.extend(crc, data))


def check_chunk(data: bytes, declared: int, *, file: str, offset: int) -> None:
    """UploadCorrupt (CHUNK_CORRUPT) unless the bytes have the CRC-32C that came with them."""
    found = crc32c(data)
    if found == declared:
        return
    raise UploadCorrupt(
        f"the chunk at {offset} has crc32c {found:#010x}, declared was {declared:#010x}.",
        reason="CHUNK_CORRUPT",
        file=file,
        item="chunk.crc32c",
        found=found,
        allowed=declared,
        hint="It was damaged on its way and is not kept; send it again.",
        metadata={"offset": str(offset)},
    )


def read_chunks(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of a file from `start` on, one chunk in memory at a time."""
    with path.open("rb") as stream:
        stream.seek(start)
        while data := stream.read(CHUNK_BYTES):
            yield start, data
            start += len(data)
