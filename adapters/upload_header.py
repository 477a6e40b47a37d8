"""What an uploader declares before sending bytes, and the checks that need nothing else."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from polygraft.adapters.canonical import canonical_bytes, sha256_digest
from polygraft.adapters.errors import AdapterIncompatible, AdapterUnsupported, InvalidRequest
from polygraft.adapters.files import ALLOWED_FILES, MANIFEST_FILE, check_complete
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.names import check_alias, check_name

SHA256 = re.compile(r"[0-9a-f]{64}")
UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # also the name of a folder


@dataclass(frozen=True, slots=True)
class FileDeclaration:
    """A file that will be sent: `size` in bytes, `sha256` in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What is to be published under `name`, and which alias, if any, shall point to it.

    `allow_unverified_base` admits folders that do not say which base they were trained on;
    `allow_no_effect` admits a LoRA that changes nothing; `no_alias` leaves `live` alone even where
    this is the first version of its name. `upload_id` is how the caller names this
    upload when it resumes; empty lets the content of the header stand for it.
    """

    name: str
    files: tuple[FileDeclaration, ...]
    alias: str | None = None
    allow_unverified_base: bool = False
    allow_no_effect: bool = False
    upload_id: str = ""
    no_alias: bool = False

    def id(self) -> str:
        """The id under which it is resumed: the caller's, or the sha256 of all that is declared."""
        if self.upload_id:
            return self.upload_id
        return sha256_digest(canonical_bytes(asdict(self))).removeprefix("sha256:")

    def namespace(self) -> str:
        """What stands before the slash of the name; empty without one."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


def check_header(header: UploadHeader, limits: AdapterLimits) -> None:
    """Refuses bad names, foreign files and excessive sizes before anything is written.

    Raises InvalidRequest, AdapterUnsupported (a file of another kind), AdapterInvalid (a file
    is missing) or AdapterIncompatible (no manifest, and unverified bases are not allowed).
    """
    check_name(header.name)
    if header.upload_id:
        check_upload_id(header.upload_id)
    if header.alias is not None:
        check_alias(header.alias)
        if header.no_alias:
            raise _bad("no_alias", f"no_alias with alias {header.alias}", "one of the two")
    if not 1 <= len(header.files) <= limits.max_files:
        raise _bad("files", len(header.files), f"1..{limits.max_files} files")
    for index, file in enumerate(header.files):
        _check_file(index, file, limits)
    names = [file.name for file in header.files]
    if len(set(names)) != len(names):
        raise _bad("files", sorted(names), "every name once")
    if header.size() > limits.max_bytes:
        raise _bad("files", f"{header.size()} bytes", f"{limits.max_bytes} bytes in total")
    check_complete(dict.fromkeys(names))
    if MANIFEST_FILE not in names and not header.allow_unverified_base:
        raise unverified()


def check_upload_id(upload_id: str) -> str:
    """The id, or InvalidRequest (INVALID_UPLOAD)."""
    if not UPLOAD_ID.fullmatch(upload_id):
        raise _bad("upload_id", upload_id[:160], "1 to 128 letters, digits, '_' and '-'")
    return upload_id


def unverified() -> AdapterIncompatible:
    """The refusal of an adapter that does not say which base it was trained on."""
    return AdapterIncompatible(
        "the upload does not declare the base it was trained on, so only shapes and values "
        "could be checked.",
        item="allow_unverified_base",
        found=False,
        allowed=True,
        hint="Set allow_unverified_base to publish it marked UNVERIFIED.",
    )


def _check_file(index: int, file: FileDeclaration, limits: AdapterLimits) -> None:
    if file.name not in ALLOWED_FILES:
        raise AdapterUnsupported(
            f"{file.name[:160]!r} is not a file of an adapter.",
            item=f"files[{index}].name",
            found=file.name[:160],
            allowed=", ".join(ALLOWED_FILES),
            hint=f"Send only {', '.join(ALLOWED_FILES)}, without folders.",
        )
    largest = ALLOWED_FILES[file.name] or limits.max_bytes
    if not 1 <= file.size <= largest:
        raise _bad(f"files[{index}].size", file.size, f"1..{largest} bytes for {file.name}")
    if not SHA256.fullmatch(file.sha256):
        raise _bad(f"files[{index}].sha256", file.sha256[:80], "64 lower-case hex digits")


def _bad(item: str, found: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(
        f"{found} is not valid (allowed: {allowed}).",
        reason="INVALID_UPLOAD",
        item=item,
        found=found,
        allowed=allowed,
    )
