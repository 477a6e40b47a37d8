"""Picks answers worth reading: the best, the worst and some at random."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from typing import Any

SEED = 0  # the same run always shows the same rows
NOT_SUBJECTS = {"id", "group", "variables", "messages", "reference", "asked", "score"}
Words = list[tuple[str, bool]]


def choose_examples(
    predictions: Sequence[dict[str, Any]], count: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows by `best`, `worst` and `random` ROUGE-L of the adapter, no row twice.

    Each row gains `asked`, its input as one text, and `score`. Empty without generated answers.
    """
    rows = [_readable(row) for row in predictions if "adapter" in row]
    if not rows:
        return {}
    for row, score in zip(rows, _scores(rows), strict=True):
        row["score"] = score
    ordered = sorted(rows, key=lambda row: row["score"])
    worst, rest = ordered[:count], ordered[count:]
    best, rest = rest[::-1][:count], rest[::-1][count:]
    chosen = random.Random(SEED).sample(rest, min(count, len(rest)))
    return {"worst": worst, "best": best, "random": chosen}


def answers_of(row: dict[str, Any]) -> dict[str, Words]:
    """Subject to its answer, word by word, with whether the reference says the word there too."""
    wanted = str(row["reference"]).split()
    return {
        name: _marked(str(text).split(), wanted)
        for name, text in row.items()
        if name not in NOT_SUBJECTS
    }


def _marked(words: list[str], wanted: list[str]) -> Words:
    matched: set[int] = set()
    matcher = difflib.SequenceMatcher(a=words, b=wanted, autojunk=False)
    for block in matcher.get_matching_blocks():
        matched.update(range(block.a, block.a + block.size))
    return [(word, index in matched) for index, word in enumerate(words)]


def _scores(rows: Sequence[dict[str, Any]]) -> list[float]:
    from polygraft.trainer.rouge import rouge_scorer

    scorer = rouge_scorer(("rougeL",))
    return [100 * scorer.score(row["reference"], row["adapter"])["rougeL"].fmeasure for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    if "messages" in row:
        asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"])
    else:
        asked = "\n".join(row.get("variables", {}).values())
    return {**row, "asked": asked}
