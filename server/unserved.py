"""Options of the wire contract that the engine does not compute yet: refused, never ignored."""

from __future__ import annotations

from polygraft.adapters.errors import InvalidRequest
from polygraft.server.requests import GenerateRequest


def refuse_unserved(request: GenerateRequest) -> None:
    """Raises InvalidRequest (UNSUPPORTED_OPTION) for the first one that is set."""
    if request.constraint is not None:
        raise _unserved("constraint")


def _unserved(item: str) -> InvalidRequest:
    return InvalidRequest(
        "this server does not compute this option yet.",
        reason="UNSUPPORTED_OPTION",
        item=item,
        hint="Leave it out.",
    )
