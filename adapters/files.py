"""Which files an adapter may consist of, and strict JSON. Never opens anything else.

Adapters are data only: safetensors and allow-listed JSON. Pickles and archives are refused by
name and by their first bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported, PolygraftError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"
PROBES_FILE: Literal["probes.safetensors"] = "probes.safetensors"
JSON_BYTES = 256 << 10
# File name -> largest size; None leaves it to AdapterLimits.max_bytes.
ALLOWED_FILES: Mapping[str, int | None] = {
    CONFIG_FILE: JSON_BYTES,
    WEIGHTS_FILE: None,
    MANIFEST_FILE: JSON_BYTES,
    PROBES_FILE: None,
    "report.json": 4 << 20,
    "README.md": 1 << 20,
    "MODEL_CARD.md": 1 << 20,
}
REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
# First bytes of formats that can carry code or hide other files.
MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive (a torch checkpoint)",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x7fELF": "a program",
    b"#!": "a script",
}
MAX_INTEGER = 1 << 63


def find_files(directory: Path) -> dict[str, Path]:
    """The files of a PEFT directory that belong to the adapter, by name.

    Other files (optimizer state, tokenizer) are left out. Raises AdapterInvalid when a required
    file is missing.
    """
    files = {name: directory / name for name in ALLOWED_FILES if (directory / name).is_file()}
    check_complete(files, directory)
    return files


def check_complete(names: Mapping[str, object], directory: Path | None = None) -> None:
    """Raises AdapterInvalid unless the config and the weights are among `names`."""
    for required in REQUIRED_FILES:
        if required in names:
            continue
        pickled = directory is not None and (directory / "adapter_model.bin").exists()
        raise AdapterInvalid(
            "the file is missing" + (f" in {directory}." if directory else "."),
            file=required,
            allowed=", ".join(REQUIRED_FILES),
            hint="adapter_model.bin is a pickle and is never opened; save again with "
            "save_pretrained(..., safe_serialization=True)."
            if pickled
            else "Give the directory that PEFT's save_pretrained wrote.",
        )


def hash_file(path: Path) -> str:
    """sha256 of a file in hex; runs at disk speed and releases the interpreter lock."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_magic(path: Path, file: str) -> None:
    """Refuses a file whose first bytes are those of a pickle, an archive or a program."""
    with path.open("rb") as stream:
        head = stream.read(512)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive"
    # Why: the little-endian length of a safetensors header may begin like a magic number, and
    # a header always opens with "{" at byte 8.
    if kind and not (file.endswith(".safetensors") and head[8:9] == b"{"):
        raise AdapterUnsupported(
            f"the file is {kind}; only safetensors and JSON are accepted.",
            file=file,
            found=kind,
            hint="Save the adapter with save_pretrained(..., safe_serialization=True).",
        )


def read_json(path: Path, file: str, *, max_bytes: int = JSON_BYTES) -> dict[str, object]:
    """The JSON object in a file of at most `max_bytes`; strict as `parse_json`."""
    size = path.stat().st_size
    if size > max_bytes:
        raise AdapterInvalid(
            f"{size} bytes are more than the limit of {max_bytes}.",
            file=file,
            found=size,
            allowed=max_bytes,
        )
    return parse_json(path.read_bytes(), file=file, max_bytes=max_bytes)


def parse_json(data: bytes, *, file: str, max_bytes: int = JSON_BYTES) -> dict[str, object]:
    """A JSON object, refusing all that Python's reader lets through.

    Refused: duplicate keys, NaN and Infinity also when written as 1e999, integers beyond 64 bits,
    lone surrogates, invalid UTF-8, a top level that is not an object, too deep nesting.
    """

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = sorted(key for key, _ in pairs)
            duplicate = next(a for a, b in itertools.pairwise(keys) if a == b)
            raise AdapterInvalid(
                "the key appears twice.", file=file, item=duplicate[:80], found=duplicate
            )
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise AdapterInvalid(f"the number {text[:40]} is not finite.", file=file, found=text)
        return value

    def bounded(text: str) -> int:
        if len(text) > 20 or not -MAX_INTEGER <= (value := int(text)) < MAX_INTEGER:
            raise AdapterInvalid(
                f"the number {text[:40]} exceeds 64 bits.", file=file, found=text[:40]
            )
        return value

    if len(data) > max_bytes:
        raise AdapterInvalid(
            f"{len(data)} bytes are more than the limit of {max_bytes}.",
            file=file,
            found=len(data),
            allowed=max_bytes,
        )
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=finite,
            parse_float=finite,
            parse_int=bounded,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
    except PolygraftError:
        raise
    except RecursionError:
        raise AdapterInvalid(
            "the JSON is nested too deeply.", file=file, hint="Save it with save_pretrained()."
        ) from None
    except ValueError as error:
        raise AdapterInvalid(
            f"not valid JSON ({error}).",
            file=file,
            allowed="UTF-8 JSON",
            hint="Copy or save it again.",
        ) from error
    if not isinstance(value, dict):
        raise AdapterInvalid(
            "the top level must be a JSON object.",
            file=file,
            found=type(value).__name__,
            allowed="object",
        )
    return value
