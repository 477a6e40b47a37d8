"""The general rows: what a base could do before anybody adapted it, by skill.

The bundled mix is that of the bundled base's pre-training; any other base takes a file of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polygraft.trainer.data import Example, read_examples
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.scoring import Prompt
from polygraft.trainer.tasks.task import chat_recipe

MIX = "builtin:mix"
PER_SKILL = 12
"""Rows of each skill in a run's report; `polygraft forget --rows` asks more."""
MAX_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class General:
    """Rows of every skill, whose name is each row's group, and the prompt that asks them."""

    name: str
    rows: list[Example]
    prompt: Prompt

    @property
    def skills(self) -> list[str]:
        """In the order of their first row."""
        return list(dict.fromkeys(row.group for row in self.rows))


def load_general(name: str, *, per_skill: int = PER_SKILL, seed: int = 0) -> General:
    """`builtin:mix`, or a file of rows with `skill`, `prompt` and `completion`.

    Raises RecipeError for an unknown name, DataError for rows that lack a field or are too few.
    """
    prompt = chat_recipe("", "prompt", max_output_tokens=MAX_ANSWER_TOKENS)
    if name == MIX:
        return General(name, _mix(per_skill, seed), prompt)
    if name.startswith("builtin:"):
        raise RecipeError(
            f"there are no general rows called {name!r}.",
            item="forgetting",
            hint=f"Known: {MIX}, or a file of rows with skill, prompt and completion.",
        )
    rows = read_examples(Path(name), ["prompt"], "completion", "skill")
    kept: dict[str, list[Example]] = {}
    for row in rows:
        kept.setdefault(row.group, []).append(row)
    chosen = [row for of_skill in kept.values() for row in of_skill[:per_skill]]
    if len(chosen) < 2:
        raise DataError("holds one row; forgetting needs more.", file=name)
    return General(name, chosen, prompt)


def _mix(per_skill: int, seed: int) -> list[Example]:
    from polygraft.trainer.base.mix import mix_rows

    return [
        Example(
            id=f"mix-{row.skill}-{number}",
            group=row.skill,
            variables={"prompt": row.prompt},
            completion=row.answer,
            source=f"{MIX}:{number}",
        )
        for number, row in enumerate(mix_rows(seed, per_skill), 1)
    ]
