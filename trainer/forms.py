"""The forms that a row of training data may have: fields for a template, a chat, or plain text.

fields    {"dialogue": ..., "summary": ...}   through the template; {prompt, completion} is one
messages  {"messages": [{"role": ..., "content": ...}, ...]}   every answer is learned
text      {"text": ...}   all of it is learned
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from polygraft.trainer.errors import DataError
from polygraft.trainer.rows import Row

ROLES = ("system", "user", "assistant")
TEXT_VARIABLE = "prompt"
"""The variable of plain text; empty in training, free to fill in service."""
Turn = Mapping[str, str]
"""{"role": ..., "content": ...}"""


class Form(StrEnum):
    """What a row looks like."""

    FIELDS = "fields"
    MESSAGES = "messages"
    TEXT = "text"


@dataclass(frozen=True)
class Pair:
    """What is asked, by variables or by messages, and what is to be learned."""

    variables: Mapping[str, str]
    completion: str
    messages: tuple[Turn, ...] = ()


PairsOf = Callable[[Row, str], list[Pair]]
"""(row, its `file:line`) -> its pairs. Raises DataError."""


def form_of(row: Row, variables: Sequence[str]) -> Form:
    """The form of a file by its first row; fields wherever the template's fields are there."""
    if all(name in row for name in variables):
        return Form.FIELDS
    if "messages" in row:
        return Form.MESSAGES
    return Form.TEXT if "text" in row and "prompt" not in row else Form.FIELDS


def field_pairs(variables: Sequence[str], completion: str) -> PairsOf:
    """For rows whose fields fill a template."""

    def pairs_of(row: Row, source: str) -> list[Pair]:
        picked = {name: text_of(row, name, source) for name in variables}
        return [Pair(picked, text_of(row, completion, source))]

    return pairs_of


def text_pairs(row: Row, source: str) -> list[Pair]:
    """For rows of plain text: nothing is asked, everything is learned."""
    return [Pair({TEXT_VARIABLE: ""}, text_of(row, "text", source))]


def message_pairs(row: Row, source: str) -> list[Pair]:
    """For chats: one pair per message of the assistant, asked with all that stands before it."""
    turns = [_turn(item, place, source) for place, item in enumerate(_listed(row, source))]
    answers = [
        Pair({}, turn["content"], tuple(turns[:place]))
        for place, turn in enumerate(turns)
        if turn["role"] == "assistant" and place
    ]
    if not answers:
        raise DataError(
            "no message of the assistant follows another one, so there is nothing to learn.",
            file=source,
            item="messages",
        )
    return answers


def text_of(row: Row, field: str, source: str) -> str:
    """A field as text. Raises DataError unless it is text or a number."""
    if field not in row:
        raise DataError(
            "no such field.", file=source, item=field, hint=f"The row has: {', '.join(row)}."
        )
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise DataError(f"must be text or a number, found {kind}.", file=source, item=field)
    return str(value)


def _listed(row: Row, source: str) -> list[Any]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise DataError("must be a list of messages.", file=source, item="messages")
    return messages


def _turn(message: Any, place: int, source: str) -> Turn:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if role not in ROLES or not isinstance(content, str):
        raise DataError(
            f"must have a role of {', '.join(ROLES)} and a text as content.",
            file=source,
            item=f"messages[{place}]",
        )
    return {"role": role, "content": content}
