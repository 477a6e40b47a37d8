"""The checks that any field of a request may need. Each refusal names field, value and limit."""

from __future__ import annotations

import math

from polygraft.adapters.errors import InvalidRequest


def check_number(
    item: str,
    value: float | None,
    least: float,
    most: float,
    *,
    above: bool = False,
    reason: str = "INVALID_SAMPLING",
) -> None:
    """Refuse what is not in [least, most], or (least, most] if `above`; NaN and -0 as well."""
    if value is None:
        return
    is_negative_zero = value == 0 and math.copysign(1, value) < 0
    if not least <= value <= most or is_negative_zero or (above and value == least):
        allowed = f"{'above ' if above else ''}{least:g} to {most:g}, finite"
        raise refuse(item, value, allowed, "is out of range", reason=reason)


def check_integer(
    item: str,
    value: int | None,
    least: int,
    most: int | None = None,
    *,
    reason: str | None = None,
) -> None:
    """Refuse what is below `least` or above `most`."""
    if value is None or (least <= value and (most is None or value <= most)):
        return
    allowed = f">= {least}" if most is None else f"{least} to {most}"
    what = "is too small" if value < least else "is too large"
    raise refuse(item, value, allowed, what, reason=reason)


def check_count(item: str, count: int, most: int, *, least: int = 0, unit: str = "items") -> None:
    """Refuse too few or too many."""
    if count < least:
        allowed = f"{least} to {most} {unit}"
        raise InvalidRequest(
            f"{count} {unit} are too few; allowed: {allowed}.",
            item=item,
            found=count,
            allowed=allowed,
        )
    if count > most:
        raise too_large(item, count, most, unit)


def too_large(item: str, found: int, most: int, unit: str) -> InvalidRequest:
    """More than a limit of this server."""
    return InvalidRequest(
        f"{found} {unit} are more than the {most} that are allowed.",
        reason="LIMIT_EXCEEDED",
        item=item,
        found=found,
        allowed=most,
    )


def refuse(
    item: str, found: object, allowed: object, what: str, *, reason: str | None = None
) -> InvalidRequest:
    """A value that is never allowed."""
    return InvalidRequest(
        f"{found!r} {what}; allowed: {allowed}.",
        reason=reason,
        item=item,
        found=found,
        allowed=allowed,
    )
