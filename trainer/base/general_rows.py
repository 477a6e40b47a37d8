"""Rows of the skills that the bundled base was trained on, one instruction each. No torch here.

Three sets that share no prompt: `mix` scores a base, `replay` is trained on to keep old skills,
`fisher` says which weights they need.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from polygraft.trainer.base.corpus import SKILLS, user_text


@dataclass(frozen=True)
class MixRow:
    """One prompt (the user message) of the general mix and its only right answer."""

    skill: str
    prompt: str
    answer: str


def mix_rows(seed: int = 0, per_skill: int = 12) -> list[MixRow]:
    """`per_skill` single-instruction examples of each skill, not drawn by any training shard."""
    rng = random.Random(f"mix/{seed}")
    return [_row(rng, skill) for skill in SKILLS for _ in range(per_skill)]


def training_rows(purpose: str, count: int, seed: int = 0) -> list[MixRow]:
    """`count` different rows, every skill as often; none has a prompt of `mix_rows(seed=0)`."""
    rng = random.Random(f"{purpose}/{seed}")
    seen = {row.prompt for row in mix_rows()}
    rows: list[MixRow] = []
    for skill in _round_robin():
        if len(rows) == count:
            break
        row = _row(rng, skill)
        if row.prompt not in seen:  # of small skills, such as looking a word up
            seen.add(row.prompt)
            rows.append(row)
    return rows


def _row(rng: random.Random, skill: str) -> MixRow:
    example = SKILLS[skill][0](rng)
    return MixRow(skill, user_text(rng, example), example.answer)


def _round_robin() -> Iterator[str]:
    while True:
        yield from SKILLS
