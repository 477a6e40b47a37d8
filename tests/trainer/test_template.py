"""Templates to recipe segments."""

import pytest

from polygraft.trainer.errors import RecipeError
from polygraft.trainer.template import parse_template, template_variables


def test_a_template_becomes_text_and_fields() -> None:
    segments = parse_template("Say {{it}}:\n{a}{b} and {a}.")
    assert segments == [
        {"text": "Say {it}:\n"},
        {"var": "a"},
        {"var": "b"},
        {"text": " and "},
        {"var": "a"},
        {"text": "."},
    ]
    assert template_variables(segments) == ["a", "b"]


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{}", "{a", "}", "no"])
def test_anything_but_plain_fields_is_refused(template: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.template"):
        parse_template(template)
