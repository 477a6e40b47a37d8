"""Jinja where a template can only make text from the values it is given."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

FILTERS = (
    "capitalize", "default", "first", "int", "join", "last", "length", "list", "lower", "replace",
    "reverse", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
MAX_CHARACTERS = 1_000_000  # of one text that a template makes


class TemplateProblem(Exception):
    """A template cannot be read or filled; the message has no full stop."""


class _Environment(ImmutableSandboxedEnvironment):
    """No globals (`range`, `lipsum`), few filters, no repetition of texts by `*` or `**`."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.filters["int"] = int  # Jinja's own makes 0 of what is no number

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers only, and no powers: `"x" * 9999999999` would fill the memory."""
        if operator == "**" or not all(isinstance(v, int | float) for v in (left, right)):
            raise TemplateError(f"{operator!r} works on numbers only, and '**' not at all")
        return super().call_binop(context, operator, left, right)


@cache
def _environment() -> _Environment:
    return _Environment()


@cache
def _compiled(source: str) -> Any:
    try:
        return _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise TemplateProblem(f"is not valid Jinja: {error}") from None


def fields_in(source: str) -> set[str]:
    """Names that a template takes from outside. Raises TemplateProblem."""
    _compiled(source)  # finds unknown filters as well
    return meta.find_undeclared_variables(_environment().parse(source))


def fill(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of `values`. Raises TemplateProblem."""
    pieces, length = [], 0
    try:
        for piece in _compiled(source).generate(dict(values)):
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise TemplateProblem(f"makes more than {MAX_CHARACTERS} characters")
            pieces.append(piece)
    except TemplateProblem:
        raise
    except Exception as error:  # whatever Python raises on the template's behalf
        raise TemplateProblem(f"cannot be filled: {error}") from None
    return "".join(pieces)


def segments_in(source: str, constants: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """The template as `{"text": ...}` and `{"var": ...}`, or None where it computes on a field.

    What depends on `constants` alone becomes text.
    """
    segments: list[dict[str, str]] = []
    for node in _environment().parse(source).body:
        if not isinstance(node, nodes.Output):
            return None
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData):
                _append_text(segments, part.data)
            elif isinstance(part, nodes.Name) and part.name not in constants:
                segments.append({"var": part.name})
            elif _names(part) <= set(constants):
                _append_text(segments, _evaluated(part, constants))
            else:
                return None
    return _stripped(segments)


def _names(node: nodes.Node) -> set[str]:
    found = {name.name for name in node.find_all(nodes.Name)}
    return found | ({node.name} if isinstance(node, nodes.Name) else set())


def _evaluated(node: nodes.Expr, constants: Mapping[str, Any]) -> str:
    template = nodes.Template([nodes.Output([node], lineno=1)], lineno=1)
    template.set_environment(_environment())
    return str(_environment().from_string(template).render(dict(constants)))


def _append_text(segments: list[dict[str, str]], text: str) -> None:
    if segments and "text" in segments[-1]:
        segments[-1]["text"] += text
    else:
        segments.append({"text": text})


def _stripped(segments: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without outer white space, as the filled text is."""
    if segments and "text" in segments[0]:
        segments[0]["text"] = segments[0]["text"].lstrip()
    if segments and "text" in segments[-1]:
        segments[-1]["text"] = segments[-1]["text"].rstrip()
    return [segment for segment in segments if segment.get("text", "x")]
