"""Templates: what ships is whole, what a stranger writes can only make text."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from polygraft.trainer.config import Data
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.instruction_set import write_instructions
from polygraft.trainer.library import Template, add_templates, builtin_library, parse_templates
from polygraft.trainer.sandbox import TemplateProblem, fill
from polygraft.trainer.source import load_source

ROW = {
    **{name: f"<{name}>" for name in ("dialogue", "summary", "text", "sentence", "premise")},
    **{name: f"<{name}>" for name in ("hypothesis", "context", "question", "answer", "source")},
    **{name: f"<{name}>" for name in ("source_language", "target_language", "target_text")},
    **{name: f"<{name}>" for name in ("ticket", "team", "sentence1", "sentence2")},
    "label": 1,
}


def test_the_library_has_six_wordings_and_an_inverted_one_per_task() -> None:
    templates = builtin_library().templates.values()
    tasks = {template.task for template in templates}
    assert len(templates) >= 30
    for task in tasks:
        wordings = [t for t in templates if t.task == task]
        assert len({t.input for t in wordings if not t.inverted}) >= 6
        assert any(t.inverted for t in wordings)


@pytest.mark.parametrize("name", builtin_library().templates)
def test_every_template_fills_as_plain_jinja_and_its_segments_say_the_same(name: str) -> None:
    template = builtin_library().find(name)
    values = {**ROW, "answer_choices": list(template.answer_choices)}
    prompt, completion = template.pair(ROW, "here")
    assert prompt == Environment().from_string(template.input).render(values).strip()
    assert completion == Environment().from_string(template.target).render(values).strip()
    segments = template.segments()
    if segments is not None:
        assert prompt == "".join(s.get("text", "") or str(ROW[s["var"]]) for s in segments)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ x.__class__.__mro__ }}", "unsafe"),
        ("{{ x.__init__.__globals__ }}", "unsafe"),
        ("{{ 'a' * 1000000000 }}", "numbers only"),
        ("{{ '%999999999d' % 1 }}", "numbers only"),
        ("{{ 9 ** 9 ** 9 }}", "not at all"),
        ("{% for i in range(9) %}{{ i }}{% endfor %}", "'range' is undefined"),
        ("{{ x | center(1000000000) }}", "No filter named 'center'"),
        ("{{ x", "is not valid Jinja"),
        ("{% include 'a' %}", "no loader"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ x | int }}", "invalid literal for int"),
        ("{% for a in x %}{% for b in x %}{{ x }}{% endfor %}{% endfor %}", "1000000 characters"),
    ],
)
def test_what_is_more_than_text_is_refused(source: str, says: str) -> None:
    with pytest.raises(TemplateProblem, match=says):
        fill(source, {"x": "y" * 200})


def segments_of(text: str, **extra: Any) -> list[dict[str, str]] | None:
    return Template(id="t", task="t", input=text, target="{{ b }}", **extra).segments()


def test_choices_become_text_and_what_computes_cannot_be_carried() -> None:
    text = "Choose {{ answer_choices | join(', ') }}.\n{{ a }}\n"
    assert segments_of(text, answer_choices=("x", "y")) == [
        {"text": "Choose x, y.\n"},
        {"var": "a"},
    ]
    assert segments_of("{{ a | upper }}") is None
    assert segments_of("{% if a %}x{% endif %}") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {id: a, task: t, input: '{{ x }}', targt: y}", "Did you mean 'target'"),
        ("- {id: a, task: t, input: x, target: y}", "names no field"),
        ("- {id: a, task: t, input: '{{ x | foo }}', target: y}", "No filter named 'foo'"),
        ("a: b", "list of templates"),
        ("[", "not valid YAML"),
    ],
)
def test_a_broken_template_file_is_refused(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_templates(text, "t.yaml")


def test_templates_are_added_all_or_none(tmp_path: Path) -> None:
    new, mine = tmp_path / "new.yaml", tmp_path / "mine.yaml"
    new.write_text("- {id: my-own, task: t, input: '{{ x }}', target: '{{ y }}'}\n")
    assert add_templates(new, mine) == ["my-own"]
    before = mine.read_bytes()
    with pytest.raises(RecipeError, match="two templates 'my-own'"):
        add_templates(new, mine)
    assert mine.read_bytes() == before


def test_an_instruction_set_keeps_rows_groups_and_order_of_wordings(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"ticket": f"t{i}", "team": "billing"}) + "\n" for i in range(30))
    )
    wordings = builtin_library().of_task("routing")
    assert write_instructions(str(rows), tmp_path / "one.jsonl", wordings) == 30
    assert write_instructions(str(rows), tmp_path / "all.jsonl", wordings, every=True) == 30 * 7
    one = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    every = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["source"] for row in one] == [f"{rows}:{i}" for i in range(1, 31)]
    assert len({row["template"] for row in one}) > 3
    assert {row["group"] for row in one} == {row["group"] for row in every}
    assert all(row in every for row in one)
    with pytest.raises(RecipeError, match="is there already"):
        write_instructions(str(rows), tmp_path / "one.jsonl", wordings)
    rows.write_text('{"ticket": "x"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: team: no such field"):
        write_instructions(str(rows), tmp_path / "new.jsonl", wordings)
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("template", "segments"),
    [
        (
            "builtin:sentiment-label",
            [{"text": "Review: "}, {"var": "sentence"}, {"text": "\nSentiment:"}],
        ),
        (["builtin:sentiment-label", "builtin:sentiment-tone"], [{"var": "prompt"}]),
    ],
)
def test_a_recipe_takes_templates(tmp_path: Path, template: object, segments: object) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"sentence": f"s{i}", "label": i % 2}) + "\n" for i in range(60))
    )
    source = load_source(
        Data.model_validate({"train": str(path), "split": {}, "template": template})
    )
    assert source.prompt["segments"] == segments
    assert source.metric == "exact_match"
    assert {row.completion for row in source.splits.train} == {"negative", "positive"}
    if isinstance(template, list):
        assert {row.variables["prompt"].split()[0] for row in source.splits.train} == {
            "Review:",
            "Judge",
        }


def test_an_unknown_template_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'sentiment-label'"):
        builtin_library().find("builtin:sentiment-labl")
