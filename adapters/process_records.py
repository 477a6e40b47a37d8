"""Records as JSON, for the way to the validation process and back. Tensors travel as shapes.

A record is one of the classes named here: nothing that arrives can make anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polygraft.adapters import (
    base_changes,
    errors,
    fingerprint,
    geometry,
    limits,
    low_rank,
    upload_header,
    weights,
)
from polygraft.adapters.errors import PolygraftError

_MODULES = (base_changes, fingerprint, geometry, limits, low_rank, upload_header, weights)
_RECORDS: Mapping[str, type[Any]] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}
_ERROR_FIELDS = ("message", "code", "file", "item", "found", "allowed", "hint", "metadata")


def to_json(value: Any) -> Any:
    """The value as JSON; TypeError for what has no place in a record."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, (list, tuple)):
        return {"items": [to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {"map": {_text(key): to_json(item) for key, item in value.items()}}
    if type(value).__name__ in _RECORDS:
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": fields}
    raise TypeError(f"{type(value).__name__} is not a record")


def from_json(value: Any) -> Any:
    """What `to_json` was given; lists are tuples, and tensors have no values (device "meta")."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["dtype"])
        return torch.empty(value["tensor"], dtype=dtype, device="meta")
    if "path" in value:
        return Path(value["path"])
    if "items" in value:
        return tuple(from_json(item) for item in value["items"])
    if "map" in value:
        return {key: from_json(item) for key, item in value["map"].items()}
    fields = {name: from_json(item) for name, item in value["fields"].items()}
    return _RECORDS[value["record"]](**fields)


def error_to_json(error: PolygraftError) -> dict[str, Any]:
    """A refusal; what was found and allowed become text, as on the wire."""
    values = {name: getattr(error, name) for name in _ERROR_FIELDS}
    for name in ("found", "allowed"):
        if values[name] is not None:
            values[name] = str(values[name])[:1000]
    return {"error": type(error).__name__, **values}


def error_from_json(value: Mapping[str, Any]) -> PolygraftError:
    """The same refusal."""
    kind = getattr(errors, value["error"])
    if not (isinstance(kind, type) and issubclass(kind, PolygraftError)):
        raise TypeError(f"{value['error']} is not an error of ours")
    details = {name: value[name] for name in _ERROR_FIELDS if name not in ("message", "code")}
    error = kind(value["message"], reason=value["code"], **details)
    assert isinstance(error, PolygraftError)
    return error


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is no text")
    return key
