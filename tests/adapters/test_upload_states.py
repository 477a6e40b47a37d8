"""The upload as a state machine: whatever clients and servers do, only exact bytes publish.

The model is simple: per file, a prefix of the declared bytes has come. Two clients send the same
upload in any order, doubled, damaged, with gaps, of other bytes; servers stop and are killed.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import pytest
from adapter_support.directories import header_of, small_geometry, write_adapter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from polygraft.adapters import staged_file
from polygraft.adapters.chunks import crc32c
from polygraft.adapters.errors import (
    AdapterNotFound,
    UploadConflict,
    UploadCorrupt,
    UploadNotFound,
    UploadOutOfRange,
)
from polygraft.adapters.files import find_files
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.upload import Upload, UploadState
from polygraft.adapters.uploads import Uploads

STRETCH = 64  # small, so that a few hundred bytes have several
CLIENTS = st.integers(0, 1)
FILES = st.integers(0, 2)
PLACES = st.floats(0, 1)
LENGTHS = st.integers(1, 400)


class UploadMachine(RuleBasedStateMachine):
    """Two clients, one upload, and a server that does not stay."""

    @initialize()
    def set_up(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(staged_file, "STRETCH_BYTES", STRETCH)
        memory = Path("/dev/shm")  # thousands of small files take their time on a disk
        self.root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.folder = write_adapter(self.root / "a")
        (self.folder / "README.md").write_bytes(bytes(i % 251 for i in range(700)))
        files = find_files(self.folder)
        self.contents = [path.read_bytes() for path in files.values()]
        self.header = header_of(files, "sum", allow_unverified_base=True, upload_id="it")
        self.clients: list[Upload | None] = [None, None]
        self.persisted = [0, 0, 0]
        self.is_spoiled = False  # other bytes have come in the right place
        self.is_published = False
        self._start()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.patch.undo()
            self.uploads.close()
            shutil.rmtree(self.root, ignore_errors=True)  # finalizers may remove files meanwhile

    def _start(self) -> None:
        self.registry = Registry(LocalStore(self.root / "store"))
        self.uploads = Uploads(
            self.root / "staging", self.registry, small_geometry(), AdapterLimits()
        )

    def _restart(self) -> None:
        """What was not in the journal is gone; the model learns how much that was."""
        self._start()
        self.clients = [None, None]
        try:
            status = self.uploads.status("it")
        except UploadNotFound:
            self.persisted, self.is_spoiled = [0, 0, 0], False
            return
        for was, is_, content in zip(self.persisted, status.persisted, self.contents, strict=True):
            assert was - STRETCH < is_ <= was
            assert was < len(content) or is_ == was  # a whole file is never lost
        self.persisted = list(status.persisted)

    def _upload(self, client: int) -> Upload:
        """The client's upload; it connects if it has none, or none that goes on."""
        upload = self.clients[client]
        if upload is not None and not upload.is_over:
            return upload
        if upload is not None:
            self.uploads.end(upload)
        self.clients[client] = upload = self.uploads.begin(self.header)
        return upload

    def _slice(self, file: int, place: float, length: int) -> tuple[int, bytes]:
        offset = round(place * self.persisted[file])
        return offset, self.contents[file][offset : offset + length]

    @rule(client=CLIENTS, file=FILES, length=LENGTHS)
    def the_next_bytes_come(self, client: int, file: int, length: int) -> None:
        self._send(client, file, *self._slice(file, 1.0, length))

    @rule(client=CLIENTS, files=st.sets(FILES, min_size=1))
    def the_rest_comes(self, client: int, files: set[int]) -> None:
        for file in sorted(files):
            self._send(client, file, *self._slice(file, 1.0, 1000))

    @rule(client=CLIENTS, file=FILES, place=PLACES, length=LENGTHS)
    def bytes_come_again(self, client: int, file: int, place: float, length: int) -> None:
        self._send(client, file, *self._slice(file, place, length))

    def _send(self, client: int, file: int, offset: int, data: bytes) -> None:
        upload = self._upload(client)
        if self.is_spoiled:
            return
        upload.write(file, offset, data, crc32c(data))
        self.persisted[file] = max(self.persisted[file], offset + len(data))

    @rule(client=CLIENTS, file=FILES, gap=st.integers(1, 900), length=LENGTHS)
    def bytes_come_too_early(self, client: int, file: int, gap: int, length: int) -> None:
        offset = self.persisted[file] + gap
        data = self.contents[file][offset : offset + length] or b"x"
        with pytest.raises(UploadOutOfRange) as caught:
            self._upload(client).write(file, offset, data, crc32c(data))
        assert caught.value.metadata["offset"] == str(self.persisted[file])

    @rule(client=CLIENTS, file=FILES, place=PLACES, length=LENGTHS)
    def bytes_are_damaged_on_their_way(
        self, client: int, file: int, place: float, length: int
    ) -> None:
        offset, data = self._slice(file, place, length)
        with pytest.raises(UploadCorrupt, match="has crc32c"):
            self._upload(client).write(file, offset, data, crc32c(data) ^ 1)

    @rule(client=CLIENTS, file=FILES)
    def a_file_gets_longer_than_declared(self, client: int, file: int) -> None:
        start = self.persisted[file]
        data = self.contents[file][start:] + b"x"
        with pytest.raises(UploadCorrupt, match="more bytes than the declared"):
            self._upload(client).write(file, start, data, crc32c(data))

    @precondition(lambda self: any(self.persisted))
    @rule(client=CLIENTS, file=FILES, place=st.floats(0, 0.99))
    def other_bytes_come_where_some_were(self, client: int, file: int, place: float) -> None:
        upload, offset = self._upload(client), int(place * self.persisted[file])
        if offset == self.persisted[file] or self.is_spoiled:
            return
        data = bytes([self.contents[file][offset] ^ 1])
        with pytest.raises(UploadCorrupt, match="differs"):
            upload.write(file, offset, data, crc32c(data))

    @rule(client=CLIENTS, file=FILES)
    def a_client_sends_the_rest_of_another_file(self, client: int, file: int) -> None:
        """Well-formed in everything but what it is."""
        upload, start = self._upload(client), self.persisted[file]
        rest = self.contents[file][start:]
        if not rest or self.is_spoiled:
            return
        wrong = bytes(byte ^ 1 for byte in rest)
        upload.write(file, start, wrong, crc32c(wrong))
        self.persisted[file], self.is_spoiled = len(self.contents[file]), True

    @rule(client=CLIENTS)
    def a_client_asks_for_publication(self, client: int) -> None:
        upload = self._upload(client)
        is_complete = self.persisted == [len(content) for content in self.contents]
        if not is_complete:
            with pytest.raises(UploadCorrupt) as caught:
                upload.finish()
            assert caught.value.code == "UPLOAD_INCOMPLETE"
            return
        if self.is_spoiled:
            with pytest.raises(UploadCorrupt, match="sha256"):
                upload.finish()
            assert upload.state is UploadState.REJECTED
        else:
            assert upload.finish().record.number == 1
            self.is_published = True
        self.persisted, self.is_spoiled = [0, 0, 0], False

    @rule(client=CLIENTS, spoiled=st.one_of(st.none(), FILES))
    def a_client_sends_all_that_is_missing(self, client: int, spoiled: int | None) -> None:
        if spoiled is not None:
            self.a_client_sends_the_rest_of_another_file(client, spoiled)
            for file, content in enumerate(self.contents):
                rest = content[self.persisted[file] :]
                self._upload(client).write(file, self.persisted[file], rest)
                self.persisted[file] = len(content)
        else:
            self.the_rest_comes(client, {0, 1, 2})
        self.a_client_asks_for_publication(client)

    @rule(client=CLIENTS)
    def a_client_leaves(self, client: int) -> None:
        upload = self.clients[client]
        if upload is not None:
            self.uploads.end(upload)
            self.clients[client] = None

    @rule()
    def somebody_uses_the_id_for_something_else(self) -> None:
        self._upload(0)
        with pytest.raises(UploadConflict):
            self.uploads.begin(dataclasses.replace(self.header, name="other"))

    @rule()
    def the_server_stops_and_starts(self) -> None:
        for client in (0, 1):
            self.a_client_leaves(client)
        self.uploads.close()
        self._restart()

    @rule()
    def the_server_is_killed_and_starts(self) -> None:
        self.uploads._staging._release()  # as the kernel does
        self._restart()

    @rule()
    def nobody_goes_on_for_an_hour(self) -> None:
        for client in (0, 1):
            self.a_client_leaves(client)
        for upload in self.uploads._unfinished.values():
            upload._touched_at -= 3601
        if self.uploads.sweep():
            self.persisted, self.is_spoiled = [0, 0, 0], False

    @invariant()
    def only_exact_bytes_are_published(self) -> None:
        if not hasattr(self, "registry"):
            return
        if not self.is_published:
            with pytest.raises(AdapterNotFound):
                self.registry.versions("sum")
            return
        [record] = self.registry.versions("sum")
        stored = self.registry.files(record.digest)
        found = {name: path.read_bytes() for name, path in stored.items()}
        assert found == dict(zip(find_files(self.folder), self.contents, strict=True))

    @invariant()
    def the_server_knows_what_has_come(self) -> None:
        if not hasattr(self, "uploads"):
            return
        running = sum(upload is not None for upload in self.clients)
        assert self.uploads.num_running() == running
        try:
            status = self.uploads.status("it")
        except UploadNotFound:
            assert self.persisted == [0, 0, 0]
            return
        if status.state is UploadState.RECEIVING:
            assert list(status.persisted) == self.persisted


TestUploads = UploadMachine.TestCase
TestUploads.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
