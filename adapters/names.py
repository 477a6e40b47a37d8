"""How adapters are named and referred to.

summarize            the alias `live` of the adapter "summarize"
summarize@canary     another alias          summarize@7      version number 7
team/summarize       with a namespace       sha256:<hex>     exactly this version
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from polygraft.adapters.errors import AdapterNotFound, InvalidRequest

LIVE = "live"
MAX_COMPARED = 200
PART = r"[a-z0-9][a-z0-9._-]{0,62}"
NAME = re.compile(rf"({PART}/)?{PART}")
ALIAS = re.compile(rf"(?!\d+$){PART}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NUMBER = re.compile(r"[1-9]\d{0,8}")
NAME_RULE = (
    "lower-case letters, digits, '.', '_', '-', at most 63, optionally <namespace>/ in front"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: a digest, or a name with a number or an alias."""

    name: str = ""
    alias: str | None = None
    number: int | None = None
    digest: str | None = None


def parse_reference(text: str) -> Reference:
    """Raises InvalidRequest (INVALID_REFERENCE) when `text` has none of the forms above."""
    if DIGEST.fullmatch(text):
        return Reference(digest=text)
    name, separator, target = text.partition("@")
    if not separator:
        target = LIVE
    if NAME.fullmatch(name) and NUMBER.fullmatch(target):
        return Reference(name, number=int(target))
    if NAME.fullmatch(name) and ALIAS.fullmatch(target):
        return Reference(name, alias=target)
    raise InvalidRequest(
        f"{text[:160]!r} is not an adapter reference.",
        reason="INVALID_REFERENCE",
        item="adapter",
        found=text[:160],
        allowed="name, name@alias, name@number or sha256:<hex>",
        hint=f"Use name, name@alias, name@number or sha256:<hex>; names are {NAME_RULE}.",
    )


def check_name(name: str) -> str:
    """The name, or InvalidRequest (INVALID_NAME)."""
    if NAME.fullmatch(name):
        return name
    raise _bad_name("name", name)


def check_alias(alias: str) -> str:
    """The alias, or InvalidRequest (INVALID_NAME); an alias must not look like a number."""
    if ALIAS.fullmatch(alias):
        return alias
    raise _bad_name("alias", alias)


def name_path(name: str) -> str:
    """The part of a store key that stands for a name: "<namespace or _>/<name>"."""
    return name if "/" in name else f"_/{name}"


def path_name(path: str) -> str:
    """The name that a part of a store key stands for."""
    return path.removeprefix("_/")


def namespace_of(name: str) -> str:
    """What stands before the slash of a name; empty without one."""
    namespace, slash, _ = name.partition("/")
    return namespace if slash else ""


def not_found(what: str, wanted: str, existing: Iterable[str]) -> AdapterNotFound:
    """AdapterNotFound that names the nearest of what exists."""
    names = list(existing)
    # Why so few: this answers requests on the event loop, and there may be 10 000 names.
    similar = [name for name in names if name[:1] == wanted[:1]][:MAX_COMPARED]
    near = difflib.get_close_matches(wanted, similar, n=3, cutoff=0.5) or names[:5]
    return AdapterNotFound(
        f"there is no {what} {wanted!r}.",
        item="adapter",
        found=wanted,
        hint=f"There is: {', '.join(near)}." if near else "There is none yet.",
    )


def _bad_name(item: str, value: str) -> InvalidRequest:
    return InvalidRequest(
        f"{value[:160]!r} is not a valid {item}.",
        reason="INVALID_NAME",
        item=item,
        found=value[:160],
        allowed=NAME_RULE,
        hint=f"Use {NAME_RULE}; an alias must not be a number.",
    )
