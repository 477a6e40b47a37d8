"""One upload: it receives bytes from whoever knows its header, then is published or refused.

    RECEIVING -> VALIDATING -> PUBLISHED | REJECTED        RECEIVING -> EXPIRED

Several clients may send the same upload at once, the same bytes twice, or leave and come back: a
chunk either follows what has come, or repeats it, or is refused and changes nothing. Thread-safe.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polygraft.adapters.alias_records import AliasRecord
from polygraft.adapters.chunks import check_chunk
from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    InvalidRequest,
    PolygraftError,
    UploadCorrupt,
)
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.registry import VersionRecord
from polygraft.adapters.staging import StagedUpload
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader

# They say that the content will never do. Whatever else goes wrong may go right the next time.
REFUSALS = (AdapterInvalid, AdapterIncompatible, UploadCorrupt, InvalidRequest)


class UploadState(enum.Enum):
    """How far an upload has come."""

    RECEIVING = "receiving"
    VALIDATING = "validating"
    PUBLISHED = "published"
    REJECTED = "rejected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class PublishedUpload:
    """The outcome: the version, the alias moved to it, and what the uploader should know."""

    record: VersionRecord
    alias: AliasRecord | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """What a caller may know of an upload; `persisted` in bytes, in the order of the header."""

    header: UploadHeader
    state: UploadState
    persisted: tuple[int, ...]
    published: PublishedUpload | None
    refusal: PolygraftError | None


Publish = Callable[[UploadHeader, Mapping[str, Path]], PublishedUpload]


class Upload:
    """See the module. `publish` validates the complete files and publishes them; `on_end` is called
    once, when the bytes are gone. `idle`: seconds since it was last gone on with."""

    def __init__(
        self,
        staged: StagedUpload,
        publish: Publish,
        *,
        on_end: Callable[[Upload], None] = lambda upload: None,
        idle: float = 0.0,
    ) -> None:
        self.header = staged.header
        self._staged = staged
        self._publish = publish
        self._on_end = on_end
        self._changing = threading.Lock()  # one change of bytes or state at a time
        self._finishing = threading.Lock()  # the others wait for the first one's outcome
        self._state = UploadState.RECEIVING
        self._published: PublishedUpload | None = None
        self._refusal: PolygraftError | None = None
        self._users = 0
        self._touched_at = time.monotonic() - idle

    @property
    def state(self) -> UploadState:
        """How far it has come."""
        return self._state

    @property
    def is_over(self) -> bool:
        """Whether its bytes are gone and its state is final."""
        return self._state not in (UploadState.RECEIVING, UploadState.VALIDATING)

    def join(self) -> bool:
        """One more client takes part; False when it is over."""
        with self._changing:
            if self.is_over:
                return False
            self._users += 1
            self._touched_at = time.monotonic()
            return True

    def leave(self) -> None:
        """A client that joined goes; the bytes stay for the next one."""
        with self._changing:
            self._users -= 1
            self._touched_at = time.monotonic()
            if not self._users and self._state is UploadState.RECEIVING:
                self._staged.close()

    def status(self) -> UploadStatus:
        """What has come so far; the first time after a restart it reads all of it again."""
        with self._changing:
            if self._state is UploadState.RECEIVING:
                self._staged.recover()
            is_lost = self._state in (UploadState.REJECTED, UploadState.EXPIRED)
            persisted = tuple(0 if is_lost else file.persisted for file in self._staged.files)
            return UploadStatus(self.header, self._state, persisted, self._published, self._refusal)

    def write(self, file_index: int, offset: int, data: bytes, crc32c: int | None = None) -> bool:
        """Takes a chunk. False: all bytes had come before, so ask `finish` for the outcome.

        `crc32c` None: the caller vouches for the bytes. Raises UploadOutOfRange, UploadCorrupt,
        InvalidRequest or Overloaded; nothing of the chunk is kept then, and all others are.
        """
        if crc32c is not None:
            check_chunk(data, crc32c, file=self._name_of(file_index), offset=offset)
        with self._changing:
            if self._state is not UploadState.RECEIVING:
                return False
            self._staged.recover()
            self._staged.write(file_index, offset, data)
            self._touched_at = time.monotonic()
            return True

    def finish(self) -> PublishedUpload:
        """Validates and publishes; durable when it returns. Again gives the same outcome.

        While bytes are missing it raises UploadCorrupt (UPLOAD_INCOMPLETE) and nothing changes.
        A refusal is final: UploadCorrupt, AdapterInvalid or AdapterIncompatible. After any other
        error the bytes are kept, and finishing may be tried again.
        """
        with self._finishing:
            if self._published is not None:
                return self._published
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)
            self._close_for_writing()
            try:
                failpoint("upload.validate")
                published = self._publish(self.header, self._staged.checked_files())
                failpoint("upload.reply")
            except REFUSALS as refusal:
                self._end(UploadState.REJECTED, refusal)
                raise
            except BaseException:
                with self._changing:
                    self._state = UploadState.RECEIVING
                raise
            self._published = published
            self._end(UploadState.PUBLISHED)
            return published

    def expire(self, idle_seconds: float) -> bool:
        """Gives up an upload that nobody has gone on with for so long; whether it did."""
        with self._changing:
            is_idle = time.monotonic() - self._touched_at > idle_seconds
            if self._users or self._state is not UploadState.RECEIVING or not is_idle:
                return False
            self._state = UploadState.EXPIRED
            self._refusal = _ended("it was not gone on with in time")
            self._staged.remove()
        self._on_end(self)
        return True

    def close(self) -> None:
        """The server ends; what has come stays on the disk for the next one."""
        with self._changing:
            self._staged.close()

    def _close_for_writing(self) -> None:
        with self._changing:
            self._staged.recover()
            self._staged.check_sizes()
            self._state = UploadState.VALIDATING

    def _end(self, state: UploadState, refusal: PolygraftError | None = None) -> None:
        with self._changing:
            self._state, self._refusal = state, refusal
            self._staged.remove()
        self._on_end(self)

    def _name_of(self, file_index: int) -> str:
        files: tuple[FileDeclaration, ...] = self.header.files
        return files[file_index].name if 0 <= file_index < len(files) else str(file_index)


def _ended(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the upload has ended: {why}.",
        reason="UPLOAD_ENDED",
        hint="Begin again with the same header.",
    )
