"""Pages of a sorted list: the token is the last key shown, so pages survive inserts and deletes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from polygraft.adapters.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")


def page_of(
    items: Sequence[Item], key: Callable[[Item], str], page_size: int, page_token: str
) -> tuple[Sequence[Item], str]:
    """The items of one page and the token of the next, "" after the last.

    `items` are sorted by `key`. Raises InvalidRequest for a bad size or token.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest(
            f"{page_size} is not a page size.",
            item="page_size",
            found=page_size,
            allowed=f"0 to {MAX_PAGE_SIZE}",
        )
    if page_token:
        last = _read_token(page_token)
        items = [item for item in items if key(item) > last]
    page = items[: page_size or DEFAULT_PAGE_SIZE]
    return page, _write_token(key(page[-1])) if len(page) < len(items) else ""


def _write_token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidRequest(
            "this page token was not made by this server.",
            item="page_token",
            hint="Pass the next_page_token of the page before, or nothing.",
        ) from error
