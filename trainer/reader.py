"""How the rows of a data section become examples: the form, the template, the prompt recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polygraft.trainer.config import Data
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.forms import (
    TEXT_VARIABLE,
    Form,
    Pair,
    PairsOf,
    field_pairs,
    form_of,
    message_pairs,
    text_of,
    text_pairs,
)
from polygraft.trainer.library import PREFIX, Template, builtin_library, choose
from polygraft.trainer.rows import Row, read_rows
from polygraft.trainer.template import parse_template, template_variables

_WHOLE_PROMPT = [{"var": TEXT_VARIABLE}]


@dataclass(frozen=True)
class Reader:
    """What rows are turned into, and into what prompt."""

    form: Form
    segments: Sequence[Mapping[str, str]]
    """Of the prompt recipe; for chats a stand-in that no request fills."""
    pairs_of: PairsOf
    metric: str | None = None
    """What the template is scored by; None: to be told from the rows."""
    note: str | None = None

    @property
    def has_recipe(self) -> bool:
        """Whether requests fill variables; for chats they send messages."""
        return self.form is not Form.MESSAGES


def make_reader(data: Data, path: str) -> Reader:
    """The reader of a data section, its form told from the first row of `path` where `auto`.

    Raises RecipeError for an unknown template, DataError for an unreadable file.
    """
    names = (data.template,) if isinstance(data.template, str) else data.template
    if any(name.startswith(PREFIX) for name in names) or len(names) > 1:
        return _library_reader(names)
    segments = parse_template(names[0])
    variables = template_variables(segments)
    form = _form(data, path, variables)
    if form is Form.MESSAGES:
        _refuse_for_chats(data)
        return Reader(form, [{"var": "messages"}], message_pairs)
    if form is Form.TEXT:
        return Reader(form, _WHOLE_PROMPT, text_pairs, metric="loss")
    return Reader(form, segments, field_pairs(variables, data.completion))


def unreduced(data: Data) -> str:
    """Why an adapter cannot carry the prompt that it is trained with; empty where it can."""
    names = (data.template,) if isinstance(data.template, str) else data.template
    is_library = any(name.startswith(PREFIX) for name in names) or len(names) > 1
    return (_library_reader(names).note or "") if is_library and data.task is None else ""


def _form(data: Data, path: str, variables: Sequence[str]) -> Form:
    if data.form != "auto":
        return Form(data.form)
    first = next(read_rows(path), None)
    return Form.FIELDS if first is None else form_of(first[1], variables)


def _refuse_for_chats(data: Data) -> None:
    if data.system is not None:
        raise RecipeError(
            "rows of messages carry their own system message.",
            item="data.system",
            hint="Leave it out.",
        )


def _library_reader(names: Sequence[str]) -> Reader:
    templates = [builtin_library().find(name) for name in names]
    metric = "rougeL" if templates[0].metrics[0] == "rougeL" else "exact_match"
    segments = templates[0].segments() if len(templates) == 1 else None
    if segments is not None:
        return Reader(Form.FIELDS, segments, _field_pairs(templates[0], segments), metric)
    why = "its template computes" if len(templates) == 1 else "there are several wordings"
    return Reader(
        Form.FIELDS,
        _WHOLE_PROMPT,
        _rendered_pairs(templates),
        metric,
        note=f"{why}, so whoever asks the adapter sends the finished prompt",
    )


def _field_pairs(template: Template, segments: list[dict[str, str]]) -> PairsOf:
    variables = template_variables(segments)

    def pairs_of(row: Row, source: str) -> list[Pair]:
        _, completion = template.pair(row, source)
        return [Pair({name: text_of(row, name, source) for name in variables}, completion)]

    return pairs_of


def _rendered_pairs(templates: Sequence[Template]) -> PairsOf:
    def pairs_of(row: Row, source: str) -> list[Pair]:
        import json

        content = json.dumps(row, sort_keys=True, default=str)
        prompt, completion = choose(templates, content).pair(row, source)
        return [Pair({TEXT_VARIABLE: prompt}, completion)]

    return pairs_of


def plain_prompt(reader: Reader, data: Data) -> dict[str, Any]:
    """The prompt recipe as JSON, greedy."""
    prompt: dict[str, Any] = {
        "segments": [dict(segment) for segment in reader.segments],
        "wrap": data.wrap,
        "stop_sequences": list(data.stop_sequences),
        "defaults": {"temperature": "0"},
    }
    if data.system is not None:
        prompt["system"] = data.system
    return prompt
