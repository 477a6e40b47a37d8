"""References are read one way only, and names cannot leave their place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.names import (
    Reference,
    check_alias,
    check_name,
    name_path,
    parse_reference,
    path_name,
)
from polygraft.adapters.stores.protocol import check_key

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("summarize", Reference("summarize", alias="live")),
        ("summarize@canary", Reference("summarize", alias="canary")),
        ("summarize@7", Reference("summarize", number=7)),
        ("team/summarize@7", Reference("team/summarize", number=7)),
        ("7", Reference("7", alias="live")),
        ("a@7b", Reference("a", alias="7b")),
        (DIGEST, Reference(digest=DIGEST)),
    ],
)
def test_every_form_of_reference_is_read(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@live", "a@", "a@@b", "A", "a b", "../a", "a/../b", "a/b/c", "/a", "a/", "-a", ".a",
     "a@0", "a@007", "a@9999999999", "a" * 64, "a@" + "b" * 64, DIGEST.upper(), DIGEST[:-1],
     "sha256:", "a\n", "a\0", "ä"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert caught.value.code == "INVALID_REFERENCE"


@pytest.mark.parametrize("name", ["", "..", "a/..", "a/b/c", "Upper", "a" * 64, "a\n", "x@y", "é"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name)


@pytest.mark.parametrize("alias", ["", "7", "0123", "a/b", "..", "Live"])
def test_bad_aliases_are_refused(alias: str) -> None:
    with pytest.raises(InvalidRequest):
        check_alias(alias)


@settings(deadline=None)
@given(st.from_regex(r"([a-z0-9][a-z0-9._-]{0,9}/)?[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True))
def test_every_name_has_its_own_place_in_a_store(name: str) -> None:
    assert check_name(name) == name
    assert path_name(name_path(name)) == name
    assert name_path(name).count("/") == 1
    check_key(f"versions/{name_path(name)}/0000000001.json")
