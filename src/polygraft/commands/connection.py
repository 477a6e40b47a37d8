"""What the commands that talk to a server share: its address, and how results are printed."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Annotated, Any

import typer

DEFAULT_SERVER = "127.0.0.1:50051"

ServerOption = Annotated[
    str, typer.Option("--server", envvar="POLYGRAFT_SERVER", help="Address of the server.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(value: Any) -> None:
    """Results as JSON; data classes become objects, times ISO 8601."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2, default=_text))


def json_text(value: Any) -> str:
    """One result as JSON on one line."""
    return json.dumps(_plain(value), ensure_ascii=False, default=_text)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
