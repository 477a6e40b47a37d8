"""The files of a built base and the hash that pins them."""

import hashlib
from pathlib import Path

HASH_FILE = "SHA256SUMS"
PINNED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class BaseFilesError(Exception):
    """The files of a base are missing or are not the ones that its hash file names."""


def digest(path: Path) -> str:
    """SHA-256 of a file as lower-case hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_hashes(folder: Path) -> None:
    """Writes `SHA256SUMS` (the format of sha256sum) over the files that decide what a base says."""
    lines = [f"{digest(folder / name)}  {name}\n" for name in PINNED]
    (folder / HASH_FILE).write_text("".join(lines))


def verify(folder: Path) -> dict[str, str]:
    """Checks every pinned file of a base against its hash file.

    Returns:
        The SHA-256 of each file, by name.

    Raises:
        BaseFilesError: the hash file or a pinned file is missing, or a file's bytes differ.
    """
    sums = folder / HASH_FILE
    if not sums.is_file():
        raise BaseFilesError(f"{folder} has no {HASH_FILE}; build it by `polygraft base build`")
    lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines()]
    expected = {name: value for value, name in lines}
    if missing := set(PINNED) - expected.keys():
        raise BaseFilesError(f"{sums} does not name {', '.join(sorted(missing))}")
    for name, value in expected.items():
        path = folder / name
        if not path.is_file():
            raise BaseFilesError(f"{path} is missing; restore it from the release or rebuild")
        if (found := digest(path)) != value:
            raise BaseFilesError(
                f"{path} has SHA-256 {found}, {HASH_FILE} says {value}; restore or rebuild it"
            )
    return expected
