"""Few-shot forms: solved examples in front of the row that is asked.

In a chat template every example is a turn of its own with its answer; in plain text the examples
stand above the row, apart by a blank line. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polygraft.trainer.data import Example
from polygraft.trainer.forms import TEXT_VARIABLE, Turn

Prompt = Mapping[str, Any]
"""A prompt recipe as JSON, as in `Source.prompt`."""
SEPARATOR = "\n\n"
"""Between plain-text examples; it also ends an answer, or the base would go on with more rows."""


def with_shots(prompt: Prompt, shots: Sequence[Example], row: Example) -> tuple[Prompt, Example]:
    """The row behind solved examples, and the prompt it is then asked with; as it is without any.

    The prompt depends on the examples only, so that rows behind the same ones can be asked at once.
    """
    if not shots:
        return prompt, row
    if row.messages:
        return prompt, replace(row, messages=(*_solved_chats(shots), *row.messages))
    if prompt["wrap"] == "chat":
        turns = [turn for shot in shots for turn in _solved(prompt, shot)]
        if prompt.get("system"):
            turns.insert(0, {"role": "system", "content": prompt["system"]})
        asked = {"role": "user", "content": fill(prompt, row)}
        return prompt, replace(row, messages=(*turns, asked), variables={})
    parts = [fill(prompt, shot) + shot.completion for shot in shots]
    text = SEPARATOR.join([*parts, fill(prompt, row)])
    return _plain(prompt, shots), replace(row, variables={TEXT_VARIABLE: text})


def fill(prompt: Prompt, row: Example) -> str:
    """The text of a prompt with the row's variables in it, without any chat template."""
    return "".join(
        segment["text"] if "text" in segment else row.variables[segment["var"]]
        for segment in prompt["segments"]
    )


def _solved(prompt: Prompt, shot: Example) -> list[Turn]:
    asked = {"role": "user", "content": fill(prompt, shot)}
    return [asked, {"role": "assistant", "content": shot.completion}]


def _solved_chats(shots: Sequence[Example]) -> list[Turn]:
    """Chats with their answers; a template takes a system message at its start only."""
    turns: list[Turn] = []
    for shot in shots:
        turns += [turn for turn in shot.messages if turn["role"] != "system"]
        turns.append({"role": "assistant", "content": shot.completion})
    return turns


def _plain(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    stops = list(prompt.get("stop_sequences") or ())
    if SEPARATOR not in stops and not any(SEPARATOR in shot.completion for shot in shots):
        stops.append(SEPARATOR)
    return {**prompt, "segments": [{"var": TEXT_VARIABLE}], "stop_sequences": stops}
