"""Finding an adapter's files and cutting them into the messages of an upload."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.adapters.chunks import crc32c, read_chunks
from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import MANIFEST_FILE, REQUIRED_FILES, check_complete, hash_file
from polygraft.adapters.upload_header import FileDeclaration, UploadHeader
from polygraft.protos import adapters_pb2 as pb

Progress = Callable[[int, int], None]
"""Called with bytes sent and bytes in all, possibly from another thread. After a broken connection
it may step back to what had arrived."""


_SCHEMAS = "polygraft.adapter/"  # every version of the manifest's schema


@dataclass(frozen=True, slots=True)
class UploadSource:
    """Files to upload, measured and hashed."""

    files: Mapping[str, Path]
    declarations: tuple[pb.FileDeclaration, ...]

    @classmethod
    def open(cls, source: str | Path | Mapping[str, Path]) -> UploadSource:
        """A PEFT directory, a run directory of the trainer, or file names with their paths.

        Reads every file once, for its sha256. Raises AdapterInvalid when one is missing.
        """
        files = source if isinstance(source, Mapping) else find_adapter(Path(source))
        _refuse_unserved(files)
        declarations = [
            pb.FileDeclaration(name=name, size_bytes=path.stat().st_size, sha256=hash_file(path))
            for name, path in sorted(files.items())
        ]
        return cls(files, tuple(declarations))

    def header(self, name: str, **options: Any) -> pb.UploadHeader:
        """What is declared; its id is a digest of that, so that a retry has the same."""
        header = pb.UploadHeader(adapter_name=name, files=self.declarations, **options)
        header.upload_id = UploadHeader(
            name=name,
            files=tuple(FileDeclaration(f.name, f.size_bytes, f.sha256) for f in header.files),
            alias=header.alias or None,
            allow_unverified_base=header.allow_unverified_base,
            allow_no_effect=header.allow_no_effect,
            no_alias=header.no_alias,
        ).id()
        return header

    def messages(
        self,
        header: pb.UploadHeader,
        persisted: Mapping[str, int],
        progress: Progress | None = None,
    ) -> Iterator[pb.UploadAdapterRequest]:
        """The header, then the bytes that the server does not have. One chunk is in memory."""
        yield pb.UploadAdapterRequest(header=header)
        total, sent = self._size(), sum(persisted.values())
        for index, file in enumerate(self.declarations):
            for offset, data in read_chunks(self.files[file.name], persisted.get(file.name, 0)):
                chunk = pb.FileChunk(
                    file_index=index, offset_bytes=offset, data=data, crc32c=crc32c(data)
                )
                yield pb.UploadAdapterRequest(chunk=chunk)
                sent += len(data)
                if progress is not None:
                    progress(sent, total)

    def finished(self, progress: Progress | None) -> None:
        """Tell that nothing is left: content that is published already is not sent to its end."""
        if progress is not None:
            progress(self._size(), self._size())

    def _size(self) -> int:
        return sum(declaration.size_bytes for declaration in self.declarations)


def find_adapter(directory: Path) -> dict[str, Path]:
    """The files of an adapter: what its manifest lists, or without one the two that PEFT writes.

    `directory` holds them, or is a run directory with `adapter/` and the manifest in it, or that
    `adapter/` itself. Raises AdapterInvalid when one is missing.
    """
    folder = directory / "adapter" if (directory / "adapter").is_dir() else directory
    places = [folder, directory]
    if folder is directory and _is_of_run(directory.resolve()):
        places.append(directory.resolve().parent)
    manifest = next((p / MANIFEST_FILE for p in places if (p / MANIFEST_FILE).is_file()), None)
    names = list(REQUIRED_FILES)
    if manifest is not None:
        names = _listed_in(manifest)
    found = {name: [p / name for p in places if (p / name).is_file()] for name in names}
    files = {name: paths[0] for name, paths in found.items() if paths}
    check_complete(files, folder)
    if missing := [name for name in names if name not in files]:
        raise AdapterInvalid(
            f"the manifest lists {', '.join(missing)}, which {directory} does not have.",
            file=str(manifest),
        )
    return files if manifest is None else {**files, MANIFEST_FILE: manifest}


def _refuse_unserved(files: Mapping[str, Path]) -> None:
    """Raises AdapterUnsupported for what its own manifest says no server computes."""
    if MANIFEST_FILE not in files:
        return
    try:
        manifest = json.loads(files[MANIFEST_FILE].read_bytes())
        servable = manifest.get("servable", True)
    except (ValueError, AttributeError, OSError):
        return  # the server says what is wrong with it
    if servable is not False:
        return
    provenance = manifest.get("provenance")
    reason = provenance.get("not_servable") if isinstance(provenance, dict) else None
    raise AdapterUnsupported(
        f"it cannot be served: {reason or 'its manifest says so'}.",
        file=str(files[MANIFEST_FILE]),
        item="servable",
        hint="Score it with `polygraft score`; to serve the task, train a lora or a soft prompt.",
    )


def _is_of_run(directory: Path) -> bool:
    """Whether it is the `adapter/` of a run directory, whose manifest lies one folder up.

    Why look into it: many projects have a manifest.json of another kind.
    """
    if directory.name != "adapter":
        return False
    try:
        manifest = json.loads((directory.parent / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("schema", "")).startswith(_SCHEMAS)


def _listed_in(manifest: Path) -> list[str]:
    try:
        return [str(file["name"]) for file in json.loads(manifest.read_bytes())["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterInvalid("is not a manifest of an adapter.", file=str(manifest)) from error
