"""docs/models.md names exactly the architectures that the engine's tests serve and refuse."""

import re

from engine_support.architectures import REFUSED, SERVED
from house.checkout import ROOT


def names(section: str) -> list[str]:
    """The model types in the first column of the table of a section."""
    page = (ROOT / "docs/models.md").read_text()
    table = page.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("(")[0])]


def test_the_served_architectures_are_those_that_are_tested() -> None:
    assert sorted(names("Served")) == sorted(SERVED)


def test_the_refused_architectures_are_those_that_are_tested() -> None:
    assert sorted(names("Refused")) == sorted(REFUSED)


def test_the_front_page_counts_them() -> None:
    assert f"lists {len(SERVED)} architectures" in (ROOT / "README.md").read_text()
