"""Figures say whether they keep their bounds, and survive the way into a file."""

import pytest
from benchmarks.figures import Figure, Figures


@pytest.mark.parametrize(
    ("value", "bounds", "verdict"),
    [
        (1.1, {"at_most": 1.1}, "yes"),
        (1.2, {"at_most": 1.1}, "no"),
        (5.0, {"at_least": 5}, "yes"),
        (4.9, {"at_least": 5}, "no"),
        (0.0, {"at_most": 0}, "yes"),
        (7.0, {}, ""),
    ],
)
def test_a_figure_tells_whether_its_bound_is_kept(
    value: float, bounds: dict[str, float], verdict: str
) -> None:
    assert Figure("x", value, **bounds).verdict == verdict


def test_figures_survive_json() -> None:
    figures = Figures("b", "s", (Figure("x", 1.25, "ms", at_most=2), Figure("y", 3)))
    assert Figures.from_json(figures.to_json()) == figures


def test_the_markdown_table_has_value_unit_target_and_verdict() -> None:
    text = Figures("B", "how", (Figure("x", 1.25, "ms", at_most=2),)).to_markdown()
    assert "## B\n\nhow\n\n| figure |" in text
    assert text.endswith("| x | 1.25 ms | at most 2 | yes |\n")
