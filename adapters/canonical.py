"""Canonical JSON: one byte string per value, so that its sha256 can be an identity.

UTF-8, keys sorted by code point, no spaces, no escapes beyond JSON's own, and no floats:
fractions are decimal strings, because float formatting differs between languages.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_bytes(value: Any) -> bytes:
    """The canonical form of a JSON value; TypeError for floats and for keys that are no text."""
    _refuse_floats(value, "$")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def sha256_digest(data: bytes) -> str:
    """ "sha256:<hex>" of the bytes, as version ids are written."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _refuse_floats(value: Any, path: str) -> None:
    if isinstance(value, float):
        raise TypeError(f"{path} = {value!r}: canonical JSON has no floats, use a decimal string")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}, which is no text")
            _refuse_floats(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_floats(item, f"{path}[{index}]")
