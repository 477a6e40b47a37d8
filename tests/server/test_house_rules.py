"""Rules that a reader of one function cannot see broken: checked on the source itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from google.protobuf.internal import api_implementation
from server_support.service import Service

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


def test_every_reason_of_an_error_is_in_the_guide() -> None:
    """Clients act on reasons, so one that is missing there is a change of the API."""
    root = SERVER.parent
    found = {
        reason
        for folder in ("adapters", "server")
        for source in (root / folder).rglob("*.py")
        for reason in re.findall(r'\breason(?:: [^=]+)? ?= ?"([A-Z_]+)"', source.read_text())
    }
    before_serving = {
        *("INVALID_CONFIG", "MODEL_REFUSED", "MODEL_NOT_FOUND"),
        *("INVALID_STORE", "UNSAFE_STORE"),
    }
    guide = (root / "docs" / "api.md").read_text()
    assert {reason for reason in found - before_serving if f"`{reason}`" not in guide} == set()


async def test_every_metric_is_in_the_guide(service: Service) -> None:
    guide = (SERVER.parent / "docs" / "api.md").read_text()
    for metric in service.metrics().collect():
        suffix = "_total" if metric.type == "counter" else ""
        name = f"{metric.name}{suffix}".replace("polygraft_sequences_", "_")
        assert f"`{name}`" in guide or f"`polygraft_sequences{name}`" in guide, metric.name
