"""One hash for everything in the trainer that is told apart by its content."""

from __future__ import annotations

import hashlib


def digest(text: str) -> str:
    """sha256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
