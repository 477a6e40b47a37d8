"""Prompt templates: `Summarize:\\n{dialogue}\\nSummary:` to the literal segments of a recipe.

Only text and named fields: this is all that an adapter may carry to a server.
"""

from __future__ import annotations

import string

from polygraft.trainer.errors import RecipeError


def parse_template(template: str) -> list[dict[str, str]]:
    """Segments `{"text": ...}` and `{"var": ...}` in order. `{{` and `}}` are literal braces."""
    segments: list[dict[str, str]] = []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(
            f"{error}.", item="data.template", hint="Write a literal brace as {{ or }}."
        ) from None
    for text, field, spec, conversion in parts:
        if text and segments and "text" in segments[-1]:
            segments[-1]["text"] += text
        elif text:
            segments.append({"text": text})
        if field is None:
            continue
        if not field.isidentifier() or spec or conversion:
            raise RecipeError(
                "a field must be a plain name such as {dialogue}.",
                item="data.template",
                found=field,
                hint=f"Found {{{field}}}; write a literal brace as {{{{.",
            )
        segments.append({"var": field})
    if not any("var" in segment for segment in segments):
        raise RecipeError(
            "names no field, so every prompt would be the same.",
            item="data.template",
            hint="Put the row's field in braces, e.g. {dialogue}.",
        )
    return segments


def template_variables(segments: list[dict[str, str]]) -> list[str]:
    """The fields a template needs, each once, in order."""
    return list(dict.fromkeys(segment["var"] for segment in segments if "var" in segment))
