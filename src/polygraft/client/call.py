"""What one unary RPC is: its method, its request, how its answer is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary RPC: its method, its request, and what the caller gets of the response."""

    method: str
    request: Message
    read: Callable[[Any], T]
    timeout: float | None = None  # seconds; None: the client's
