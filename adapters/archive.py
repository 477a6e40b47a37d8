"""A version as one file: a plain tar whose every byte follows from the manifest and the files.

manifest.json first, then the files in the manifest's order; owner, time and mode are always the
same, so one version has one archive. `tar -tvf` lists it; but only archives of exactly this form
are read: each header is compared with the one that `write_archive` would have written, so there is
no room for paths, links, devices, sparse files or anything behind the end.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from polygraft.adapters.canonical import sha256_digest
from polygraft.adapters.chunks import CHUNK_BYTES
from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import ALLOWED_FILES, JSON_BYTES, MANIFEST_FILE, parse_json

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
_NAMES = frozenset(ALLOWED_FILES) - {MANIFEST_FILE}


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """What the manifest says of a file."""

    name: str
    size: int
    sha256: str


def write_archive(directory: Path, target: BinaryIO) -> str:
    """Writes manifest.json of `directory` and the files it lists; the sha256 of what was written.

    Raises AdapterInvalid when a file is not what the manifest says.
    """
    manifest = (directory / MANIFEST_FILE).read_bytes()
    digest = hashlib.sha256()

    def write(data: bytes) -> None:
        target.write(data)
        digest.update(data)

    write(_header(MANIFEST_FILE, len(manifest)))
    write(manifest + _padding(len(manifest)))
    for file in _listed(manifest):
        write(_header(file.name, file.size))
        content = hashlib.sha256()
        size = 0
        with (directory / file.name).open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                content.update(data)
                size += len(data)
                write(data)
        if (size, content.hexdigest()) != (file.size, file.sha256):
            raise _invalid("has other bytes than the manifest says.", file.name)
        write(_padding(size))
    write(END)
    return digest.hexdigest()


def read_archive(source: BinaryIO, directory: Path) -> str:
    """Writes the files into an existing empty directory; the digest of the version.

    Raises AdapterInvalid unless the archive is, byte for byte, what `write_archive` writes.
    """
    size = _manifest_size(source.read(BLOCK))
    manifest = _exactly(source, size, MANIFEST_FILE)
    _expect(source, _padding(size), "the padding of manifest.json")
    for file in _listed(manifest):
        _expect(source, _header(file.name, file.size), f"the header of {file.name}")
        _copy(source, directory / file.name, file)
        _expect(source, _padding(file.size), f"the padding of {file.name}")
    _expect(source, END, "the end")
    if source.read(1):
        raise _invalid("has bytes behind its end.")
    (directory / MANIFEST_FILE).write_bytes(manifest)
    return sha256_digest(manifest)


def _manifest_size(header: bytes) -> int:
    """Reads the size, then demands the very header that this size has."""
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 < size <= JSON_BYTES or header != _header(MANIFEST_FILE, size):
        raise _invalid(
            f"does not begin with {MANIFEST_FILE} as an export does.",
            hint="Import a file that `polygraft adapters export` wrote.",
        )
    return size


def _listed(manifest: bytes) -> list[ArchivedFile]:
    """Name, size and sha256 of each file; the server checks all the rest of the manifest."""
    listed = parse_json(manifest, file=MANIFEST_FILE).get("files")
    if not isinstance(listed, list):
        raise _invalid("lists no files.", MANIFEST_FILE)
    files = [_listed_file(entry) for entry in listed]
    names = [file.name for file in files]
    if not names or names != sorted(set(names)):
        raise _invalid("does not list its files once each, by name.", MANIFEST_FILE)
    return files


def _listed_file(entry: object) -> ArchivedFile:
    if isinstance(entry, Mapping) and set(entry) == {"name", "size", "sha256"}:
        name, size, sha256 = entry["name"], entry["size"], entry["sha256"]
        is_text = isinstance(name, str) and isinstance(sha256, str)
        if is_text and name in _NAMES and type(size) is int and size > 0:
            return ArchivedFile(name, size, sha256)
    raise _invalid(f"lists {str(entry)[:160]!r}, which no adapter has.", MANIFEST_FILE)


def _copy(source: BinaryIO, path: Path, file: ArchivedFile) -> None:
    digest, left = hashlib.sha256(), file.size
    with path.open("xb") as stream:
        while left:
            data = _exactly(source, min(CHUNK_BYTES, left), file.name)
            digest.update(data)
            stream.write(data)
            left -= len(data)
    if digest.hexdigest() != file.sha256:
        raise _invalid("has another sha256 than its manifest says.", file.name)


def _exactly(source: BinaryIO, size: int, name: str) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise _invalid("ends in the middle.", name, hint="It is truncated; copy it again.")
    return data


def _expect(source: BinaryIO, expected: bytes, what: str) -> None:
    if source.read(len(expected)) != expected:
        raise _invalid(
            f"differs from what an export writes at {what}.",
            hint="Import a file that `polygraft adapters export` wrote.",
        )


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _invalid(message: str, file: str | None = None, hint: str | None = None) -> AdapterInvalid:
    return AdapterInvalid(
        message if file else f"the archive {message}",
        reason="ARCHIVE_INVALID",
        file=file,
        hint=hint,
    )
