"""Rules that a reader of one function cannot see broken: checked on the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from google.protobuf.internal import api_implementation

SERVER = Path(__file__).parents[2] / "server"
SOURCES = sorted(SERVER.rglob("*.py"))
CANCELLING = {"BaseException", "CancelledError"}


def names_in(node: ast.expr | None) -> set[str]:
    """The exception classes that a handler names; all of them for a bare `except`."""
    if node is None:
        return set(CANCELLING)
    return {
        part.attr if isinstance(part, ast.Attribute) else part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute | ast.Name)
    }


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(SERVER)))
def test_a_cancellation_that_is_caught_is_raised_again(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ExceptHandler) and names_in(node.type) & CANCELLING:
            raises = [part for part in ast.walk(node) if isinstance(part, ast.Raise)]
            assert any(part.exc is None for part in raises), f"line {node.lineno}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(SERVER)))
def test_nothing_is_unpickled_and_the_environment_is_read_in_one_place(source: Path) -> None:
    text = source.read_text()
    assert "pickle" not in text
    assert "os.environ" not in text
    assert "getenv" not in text


def test_the_protobuf_parser_is_the_compiled_one() -> None:
    """The one in pure Python can be sent into deep recursion (CVE-2025-4565)."""
    assert api_implementation.Type() == "upb"
