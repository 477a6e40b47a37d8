"""Each example of examples/request_options.py works as it stands, and says something."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from polygraft.client import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "request_options.py"
EXAMPLES = runpy.run_path(str(EXAMPLE))["EXAMPLES"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_an_example_works(
    nano: Client, example: object, capsys: pytest.CaptureFixture[str]
) -> None:
    example(nano)  # type: ignore[operator]
    assert capsys.readouterr().out.strip()


def test_every_function_of_the_example_is_one_of_its_examples() -> None:
    functions = [line for line in EXAMPLE.read_text().splitlines() if "(client: Client)" in line]
    assert len(functions) == len(EXAMPLES)
