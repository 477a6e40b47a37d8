"""Which base is this: hashes of its weights, its config and its tokenizer's behaviour.

The weights hash covers tensor names, dtypes, shapes and bytes of the checkpoint files, so it
depends neither on the sharding nor on the dtype or device the base is loaded with.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.safetensors_header import TensorEntry, read_header
from polygraft.adapters.tokenizer_corpus import CORPUS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BUILTIN_PREFIX = "builtin:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
# Everything a causal LM needs and nothing that is code or pickle.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
# They say where or how the base was saved, not what it computes.
IGNORED_CONFIG_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Three sha256 in hex; two bases with equal ones compute the same from the same text."""

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str


def resolve_base(name_or_path: str) -> Path:
    """The directory of a base given as "builtin:nano", a directory, or a Hugging Face hub id.

    A hub id is downloaded (data files only) unless the hub cache already has it. Raises
    InvalidRequest with the way out when nothing is there.
    """
    if name_or_path.startswith(BUILTIN_PREFIX):
        return _builtin_base(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _checked_directory(path)
    if path.exists() or not HUB_ID.fullmatch(name_or_path):
        raise _base_not_found(name_or_path, "is neither a directory nor a hub id")
    return _checked_directory(_download(name_or_path))


def fingerprint_base(path: Path, tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """The fingerprint of the checkpoint in `path` as used with `tokenizer`.

    The weights hash is cached in the user's cache directory, keyed by the files' names, sizes
    and modification times. Raises InvalidRequest when the checkpoint is not safetensors.
    """
    return Fingerprint(
        weights_sha256=_cached_weights_sha256(path),
        config_sha256=hash_config(json.loads((path / "config.json").read_bytes())),
        tokenizer_sha256=hash_tokenizer(tokenizer),
    )


def hash_config(config: Mapping[str, Any]) -> str:
    """sha256 of config.json without the keys that say how it was saved."""
    text = json.dumps(
        _without_ignored(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what the tokenizer does: the ids of a fixed corpus, its size, BOS and EOS.

    Files are not compared: the same tokenizer is serialised differently by every library
    version, and the same file can behave differently under another one.
    """
    behaviour = {
        "ids": [tokenizer.encode(text) for text in CORPUS],
        "plain_ids": [tokenizer.encode(text, add_special_tokens=False) for text in CORPUS],
        "size": len(tokenizer),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }
    return hashlib.sha256(json.dumps(behaviour, sort_keys=True).encode()).hexdigest()


def hash_weights(path: Path) -> str:
    """sha256 over the sorted lines `name TAB dtype TAB shape TAB sha256(bytes)` of all tensors."""
    jobs = [(file, entry) for file in _weight_files(path) for entry in _entries(file)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda job: _hash_tensor(*job), jobs))
    tensors = {
        entry.name: (entry.dtype, ",".join(map(str, entry.shape)), digest)
        for (_, entry), digest in zip(jobs, hashes, strict=True)
    }
    lines = [
        "\t".join((name, *facts)) + "\n"
        for name, facts in sorted(tensors.items())
        if not _is_tied_copy(name, tensors)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def user_cache_dir() -> Path:
    """Where this user's caches live (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polygraft"


def _is_tied_copy(name: str, tensors: Mapping[str, tuple[str, str, str]]) -> bool:
    """Some writers store a tied head a second time; it must not change the fingerprint."""
    return name.endswith("lm_head.weight") and any(
        facts == tensors[name] for other, facts in tensors.items() if other != name
    )


def _without_ignored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without_ignored(item)
            for key, item in value.items()
            if key not in IGNORED_CONFIG_KEYS
        }
    return [_without_ignored(item) for item in value] if isinstance(value, list) else value


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    elif (path / "model.safetensors").is_file():
        names = {"model.safetensors"}
    else:
        names = {file.name for file in path.glob("*.safetensors")}
    if not names:
        raise InvalidRequest(
            f"the base in {path} has no *.safetensors file.",
            reason="MODEL_REFUSED",
            hint="Load it once with transformers and save it with save_pretrained(); pickled "
            "checkpoints (*.bin, *.pt) are never opened.",
        )
    return [path / name for name in sorted(names)]


def _entries(file: Path) -> Iterator[TensorEntry]:
    yield from read_header(
        file, file.name, max_tensors=1_000_000, max_header_bytes=100_000_000, base=True
    )


def _hash_tensor(file: Path, entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(entry.begin)
        left = entry.end - entry.begin
        while left:
            chunk = stream.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise InvalidRequest("the file ended early.", file=str(file), item=entry.name)
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _cached_weights_sha256(path: Path) -> str:
    stamps = []
    for file in _weight_files(path):
        stat = file.stat()
        stamps.append((file.name, stat.st_size, stat.st_mtime_ns))
    key = hashlib.sha256(json.dumps([str(path.resolve()), stamps]).encode()).hexdigest()
    cached = user_cache_dir() / "fingerprints" / key
    try:
        value = cached.read_text()
    except OSError:
        value = ""
    if re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    value = hash_weights(path)
    _write_cache(cached, value)
    return value


def _write_cache(path: Path, value: str) -> None:
    """Writes by rename, so that concurrent processes read the old file, the new one, or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(value)
        os.replace(temporary, path)
    except OSError as error:
        # Why: a read-only home must not stop the server; only the next start is slower.
        logger.warning("fingerprint cache not written: %s", error)


def _builtin_base(name: str) -> Path:
    assets = Path(str(importlib.resources.files("polygraft") / "assets"))
    known = sorted(p.name for p in assets.iterdir() if (p / "config.json").is_file())
    short = name.removeprefix(BUILTIN_PREFIX)
    if short not in known:
        listing = ", ".join(BUILTIN_PREFIX + known_name for known_name in known) or "none"
        raise _base_not_found(name, f"is not bundled (bundled: {listing})")
    return assets / short


def _checked_directory(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise _base_not_found(str(path), "has no config.json")
    _weight_files(path)
    return path


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises its own, httpx's and the OS's errors
        raise _base_not_found(hub_id, f"could not be fetched from the hub ({error})") from error


def _base_not_found(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the base {name!r} {why}.",
        reason="MODEL_NOT_FOUND",
        item="model",
        found=name,
        hint="Give builtin:nano, a directory with config.json and *.safetensors, or a Hugging "
        "Face id that this machine can reach.",
    )
