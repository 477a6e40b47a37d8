"""What was kept and lost, by skill: numbers and their JSON. Loads no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polygraft.trainer.score import Score, difference, mean_score, with_interval

SCHEMA = "polygraft.forgetting/1"
FALLEN_POINTS = 10.0
"""A skill has fallen where it lost at least that much and the interval of the loss is above 0."""
ALL = "all skills"
_SIGNATURE = "exact_match|strip|mean"


@dataclass(frozen=True)
class Skill:
    """One skill, or all together: exact match in percent, each with its interval."""

    name: str
    before: Score
    attached: Score
    detached: Score
    drop: Score
    """Before less attached, paired row by row."""

    @property
    def has_fallen(self) -> bool:
        """By more than chance, and by enough to matter."""
        low = self.drop.interval[0] if self.drop.interval else 0.0
        return (self.drop.value or 0.0) >= FALLEN_POINTS and low > 0

    def as_json(self) -> dict[str, Any]:
        """Numbers in percent."""
        assert self.drop.interval is not None
        return {
            "skill": self.name,
            "rows": len(self.before.rows),
            "before": _rounded(self.before),
            "attached": _rounded(self.attached),
            "detached": _rounded(self.detached),
            "drop": _rounded(self.drop),
            "drop_ci95": [round(bound, 2) for bound in self.drop.interval],
            "fallen": self.has_fallen,
        }


@dataclass(frozen=True)
class Forgetting:
    """One change of a base, asked for everything the base could do."""

    change: str
    """Its run or adapter."""
    base: str
    general: str
    """Where the rows come from."""
    skills: tuple[Skill, ...]
    total: Skill
    """Over all rows."""
    bit_equal: bool
    """Whether every logit of every row, detached, is that of the base before, to the bit."""

    @property
    def fallen(self) -> list[Skill]:
        """The skills that fell, deepest first."""
        found = [skill for skill in self.skills if skill.has_fallen]
        return sorted(found, key=lambda skill: -(skill.drop.value or 0.0))

    def sentence(self) -> str:
        """The verdict."""
        total = self.total
        numbers = f"{total.before.value:.1f} before, {total.attached.value:.1f} attached"
        names = ", ".join(f"{s.name} (-{s.drop.value:.0f})" for s in self.fallen)
        lost = f"fallen: {names}" if names else "no skill fell by more than chance"
        equal = "bit-equal to the base" if self.bit_equal else "NOT bit-equal to the base"
        return f"old skills {numbers}; {lost}; detached {total.detached.value:.1f}, {equal}"

    def as_json(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        return {
            "schema": SCHEMA,
            "change": self.change,
            "base": self.base,
            "general": self.general,
            "all": self.total.as_json(),
            "skills": [skill.as_json() for skill in self.skills],
            "fallen": [skill.name for skill in self.fallen],
            "detached_logits_bit_equal": self.bit_equal,
        }


Hits = Sequence[bool]
"""Per row, whether the answer was right."""


def make_skills(
    names: Sequence[str], before: Hits, attached: Hits, detached: Hits
) -> Iterator[Skill]:
    """One record per skill in the order of first rows, then one over all. `names`: per row."""
    for skill in [*dict.fromkeys(names), ALL]:
        chosen = [index for index, name in enumerate(names) if skill in (name, ALL)]
        yield _skill(skill, *([hits[i] for i in chosen] for hits in (before, attached, detached)))


def _skill(name: str, before: Hits, attached: Hits, detached: Hits) -> Skill:
    before_, attached_, detached_ = (
        with_interval(mean_score("exact_match", [float(hit) for hit in hits], _SIGNATURE))
        for hits in (before, attached, detached)
    )
    drop = difference(before_, attached_)
    assert drop is not None  # both have the same rows
    return Skill(name, before_, attached_, detached_, drop)


def _rounded(score: Score) -> float:
    return round(score.value or 0.0, 2)
