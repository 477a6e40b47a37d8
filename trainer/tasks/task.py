"""What a task is: rows in three splits, the prompt recipe that turns a row into a prompt."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""{"id", "group", "variables": {name: text}, "completion"} and, where facts are scored, "slots"."""


@dataclass(frozen=True)
class Task:
    """A made task.

    `recipe` is the manifest's prompt recipe (literal segments and variables, chat wrap). `metric`
    is "rougeL" or "exact_match". `instructions` are plain wordings of the task for measuring the
    base without an adapter; none of them occurs in the pre-training corpus.
    """

    name: str
    recipe: dict[str, Any]
    metric: str
    splits: dict[str, list[Row]]
    instructions: tuple[str, ...]
    stop: tuple[str, ...] = field(default=())


def chat_recipe(instruction: str, variable: str, *, max_output_tokens: int) -> dict[str, Any]:
    """A recipe that puts `instruction` (may be empty) and one variable into the user message."""
    segments: list[dict[str, str]] = [{"var": variable}]
    if instruction:
        segments.insert(0, {"text": f"{instruction}\n"})
    return {
        "segments": segments,
        "wrap": "chat",
        "system": None,
        "soft_prompt": "front",
        "stop_sequences": [],
        "defaults": {"temperature": "0", "max_output_tokens": str(max_output_tokens)},
    }
