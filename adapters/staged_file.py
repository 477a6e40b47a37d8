"""One file that is being received, with a journal of which of its bytes may be trusted.

<n>.part      the bytes; its size is reserved from the start, so it tells nothing
<n>.journal   records of 16 bytes: where a stretch ends, its CRC-32C, the CRC-32C of the record

A restart believes a stretch only if its bytes have the CRC of its record, which neither a kill
between the two writes nor pages lost with the power can fake. Not thread-safe.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from polygraft.adapters.chunks import CHUNK_BYTES, crc32c, extend_crc32c
from polygraft.adapters.errors import UploadCorrupt, UploadOutOfRange
from polygraft.adapters.upload_header import FileDeclaration

RECORD = struct.Struct("<QII")  # end of the stretch, its crc32c, crc32c of the 12 bytes before
# Why not one record for each chunk: chunks may be of one byte, and a record has sixteen.
STRETCH_BYTES = 256 << 10


class StagedFile:
    """The bytes of one declared file, hashed as they come."""

    def __init__(self, path: Path, declaration: FileDeclaration) -> None:
        self.path = path
        self.declaration = declaration
        self.persisted = 0  # bytes that have come
        self._journal = path.with_suffix(".journal")
        self._sha256 = hashlib.sha256()
        self._stretch_start = 0
        self._stretch_crc = 0
        self._records = 0
        self._descriptors: tuple[int, int] | None = None

    def create(self) -> None:
        """Makes the file and reserves its size; OSError when the disk has no room."""
        self._journal.touch(exist_ok=False)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Why: a full disk is met before the bytes are sent, not after.
            os.posix_fallocate(descriptor, 0, self.declaration.size)
        finally:
            os.close(descriptor)

    def recover(self) -> None:
        """Takes up what another process received, as far as its journal proves it."""
        journal = self._journal.read_bytes() if self._journal.exists() else b""
        with self.path.open("rb") as part:
            for at in range(0, len(journal) - RECORD.size + 1, RECORD.size):
                end, crc, check = RECORD.unpack_from(journal, at)
                if crc32c(journal[at : at + RECORD.size - 4]) != check:
                    break
                if not self.persisted < end <= self.declaration.size:
                    break
                if not self._take_stretch(part.fileno(), end, crc):
                    break

    def write(self, offset: int, data: bytes) -> None:
        """Appends what is new of a chunk; what came before must be the same bytes again.

        Raises UploadOutOfRange behind the end of what has come, and UploadCorrupt for bytes that
        differ or exceed the declared size. Nothing of a refused chunk is kept.
        """
        end = offset + len(data)
        if not 0 <= offset <= self.persisted:
            raise UploadOutOfRange(
                f"offset {offset} is not where the file stands ({self.persisted}).",
                file=self.declaration.name,
                item="chunk.offset_bytes",
                found=offset,
                allowed=self.persisted,
                hint="Go on there.",
                metadata={"offset": str(self.persisted)},
            )
        if end > self.declaration.size:
            raise UploadCorrupt(
                f"more bytes than the declared {self.declaration.size}.",
                file=self.declaration.name,
                found=end,
                allowed=self.declaration.size,
            )
        known = min(self.persisted, end) - offset
        if self._read(offset, known) != data[:known]:
            raise UploadCorrupt(
                f"the chunk at {offset} differs from the bytes that came there before.",
                reason="CHUNK_CORRUPT",
                file=self.declaration.name,
                item="chunk.data",
                found=offset,
                hint="Send the file as it was declared, or begin anew with another upload_id.",
                metadata={"offset": str(self.persisted)},
            )
        if known < len(data):
            self._append(data[known:])

    def check_size(self) -> None:
        """UploadCorrupt (UPLOAD_INCOMPLETE) while bytes are missing."""
        if self.persisted == self.declaration.size:
            return
        raise UploadCorrupt(
            f"{self.persisted} of the declared {self.declaration.size} bytes have come.",
            reason="UPLOAD_INCOMPLETE",
            file=self.declaration.name,
            found=self.persisted,
            allowed=self.declaration.size,
            hint="Send the rest; the upload is kept for it.",
            metadata={"offset": str(self.persisted)},
        )

    def check_sha256(self) -> None:
        """UploadCorrupt unless the bytes are those that were declared."""
        found = self._sha256.hexdigest()
        if found == self.declaration.sha256:
            return
        raise UploadCorrupt(
            f"the bytes have sha256 {found}, declared was {self.declaration.sha256}.",
            file=self.declaration.name,
            found=found,
            allowed=self.declaration.sha256,
            hint="Upload it again.",
        )

    def close(self) -> None:
        """Gives the descriptors back; a later write opens the file again."""
        if self._descriptors is not None:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = None

    def _append(self, data: bytes) -> None:
        part, journal = self._open()
        _write_at(part, data, self.persisted)
        self._sha256.update(data)
        self._stretch_crc = extend_crc32c(self._stretch_crc, data)
        self.persisted += len(data)
        is_whole = self.persisted == self.declaration.size
        if is_whole or self.persisted - self._stretch_start >= STRETCH_BYTES:
            record = struct.pack("<QI", self.persisted, self._stretch_crc)
            record += struct.pack("<I", crc32c(record))
            _write_at(journal, record, self._records * RECORD.size)
            self._begin_stretch()

    def _begin_stretch(self) -> None:
        self._records += 1
        self._stretch_start = self.persisted
        self._stretch_crc = 0

    def _take_stretch(self, descriptor: int, end: int, declared_crc: int) -> bool:
        """Whether the bytes up to `end` are those of the record; they count from then on."""
        sha256, crc, at = self._sha256.copy(), 0, self.persisted
        while at < end:
            data = os.pread(descriptor, min(CHUNK_BYTES, end - at), at)
            if not data:
                return False
            sha256.update(data)
            crc = extend_crc32c(crc, data)
            at += len(data)
        if crc != declared_crc:
            return False
        self._sha256, self.persisted = sha256, end
        self._begin_stretch()
        return True

    def _read(self, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        return os.pread(self._open()[0], length, offset)

    def _open(self) -> tuple[int, int]:
        if self._descriptors is None:
            part = os.open(self.path, os.O_RDWR)
            try:
                journal = os.open(self._journal, os.O_WRONLY | os.O_CREAT, 0o600)
            except OSError:
                os.close(part)
                raise
            self._descriptors = (part, journal)
        return self._descriptors


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
