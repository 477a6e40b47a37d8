"""The library of prompt templates: several wordings per task, from raw columns to pairs.

A template is Jinja in a sandbox that has no loops over numbers, no attributes that Jinja deems
unsafe and only the filters named here, so one from a stranger can do no more than make text.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polygraft.trainer.digests import digest
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.rows import Row
from polygraft.trainer.sandbox import TemplateProblem, fields_in, fill, segments_in

CHOICES = "answer_choices"
PREFIX = "builtin:"


class Template(BaseModel):
    """One wording of a task. `input` and `target` see the row's fields and `answer_choices`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    task: str
    input: str = Field(min_length=1)
    target: str = Field(min_length=1)
    answer_choices: tuple[str, ...] = ()
    metrics: tuple[Literal["rougeL", "exact_match", "bleu", "accuracy"], ...] = ("exact_match",)
    inverted: bool = False
    tags: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        """The fields of a row that it needs, sorted."""
        return sorted((fields_in(self.input) | fields_in(self.target)) - {CHOICES})

    def segments(self) -> list[dict[str, str]] | None:
        """The input as literal text and fields, as an adapter carries it; None if it computes."""
        return segments_in(self.input, {CHOICES: list(self.answer_choices)})

    def pair(self, row: Row, source: str) -> tuple[str, str]:
        """Prompt and completion of a row. Raises DataError naming the row."""
        missing = [name for name in self.fields if name not in row]
        if missing:
            raise DataError(
                f"no such field, which template {self.id!r} needs.",
                file=source,
                item=missing[0],
                hint=f"The row has: {', '.join(row)}.",
            )
        values = {**row, CHOICES: list(self.answer_choices)}
        try:
            return fill(self.input, values).strip(), fill(self.target, values).strip()
        except TemplateProblem as error:
            raise DataError(f"template {self.id!r}: {error}.", file=source) from None


@dataclass(frozen=True)
class Library:
    """Templates by id."""

    templates: Mapping[str, Template]

    def find(self, name: str) -> Template:
        """A template by `builtin:<id>` or id. Raises RecipeError with the nearest id."""
        key = name.removeprefix(PREFIX)
        if key in self.templates:
            return self.templates[key]
        near = difflib.get_close_matches(key, self.templates, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See: polygraft templates list"
        raise RecipeError(f"there is no template {key!r}.", item="data.template", hint=hint)

    def of_task(self, task: str) -> list[Template]:
        """Every wording of a task. Raises RecipeError naming the tasks there are."""
        found = [template for template in self.templates.values() if template.task == task]
        if found:
            return found
        tasks = sorted({template.task for template in self.templates.values()})
        raise RecipeError(f"no template is for task {task!r}.", hint=f"Tasks: {', '.join(tasks)}.")


@cache
def builtin_library() -> Library:
    """What ships with the project: one YAML file per task in `trainer/templates/`."""
    folder = files("polygraft.trainer") / "templates"
    texts = sorted((item.name, item.read_text(encoding="utf-8")) for item in folder.iterdir())
    return _library(t for name, text in texts for t in parse_templates(text, name))


def load_library(extra: Path | None) -> Library:
    """The builtin templates and those of a YAML file, which may not reuse an id."""
    if extra is None:
        return builtin_library()
    try:
        text = extra.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the templates: {error}.", file=str(extra)) from None
    return _library([*builtin_library().templates.values(), *parse_templates(text, str(extra))])


def parse_templates(text: str, file: str) -> list[Template]:
    """The templates in YAML: a list, or a mapping of what all share and `templates`.

    Raises RecipeError for a key that is unknown, and for Jinja that the sandbox refuses.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"is not valid YAML: {error}", file=file) from None
    shared = dict(document) if isinstance(document, dict) else {}
    records = shared.pop("templates", None) if shared else document
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RecipeError("must hold a list of templates.", file=file)
    return [_parse({**shared, **record}, file) for record in records]


def choose(templates: Sequence[Template], content: str) -> Template:
    """One wording per row, fixed by the row's content: the same in every run and order."""
    return templates[int(digest(content)[:12], 16) % len(templates)]


def _parse(record: dict[str, Any], file: str) -> Template:
    name = str(record.get("id", "?"))
    try:
        template = Template.model_validate(record)
        for text in (template.input, template.target):
            fields_in(text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        near = difflib.get_close_matches(key, Template.model_fields, n=1)
        hint = f"Did you mean {near[0]!r}?" if first["type"] == "extra_forbidden" and near else None
        raise RecipeError(
            f"{first['msg']}.", file=file, item=f"template {name!r}: {key}", hint=hint
        ) from None
    except TemplateProblem as error:
        raise RecipeError(f"{error}.", file=file, item=f"template {name!r}") from None
    if not template.fields:
        raise RecipeError(
            "names no field, so every prompt would be the same.",
            file=file,
            item=f"template {name!r}",
        )
    return template


def _library(templates: Iterable[Template]) -> Library:
    found: dict[str, Template] = {}
    for template in templates:
        if template.id in found:
            raise RecipeError(f"there are two templates {template.id!r}.", item="id")
        found[template.id] = template
    return Library(found)


def add_templates(source: Path, target: Path) -> list[str]:
    """Append the templates of one YAML file to those of another; returns their ids.

    Raises RecipeError, with nothing written, when one is wrong or its id is taken.
    """
    try:
        new = parse_templates(source.read_text(encoding="utf-8"), str(source))
        old = target.read_text(encoding="utf-8") if target.exists() else "[]"
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the templates: {error}.", file=str(source)) from None
    all_of_them = [*parse_templates(old, str(target)), *new]
    _library([*builtin_library().templates.values(), *all_of_them])
    records = [template.model_dump(mode="json", exclude_defaults=True) for template in all_of_them]
    text = yaml.safe_dump(records, sort_keys=False, allow_unicode=True)
    hidden = target.with_name(f".{target.name}.part")
    hidden.write_text(text, encoding="utf-8")
    os.replace(hidden, target)
    return [template.id for template in new]
