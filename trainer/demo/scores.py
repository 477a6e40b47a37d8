"""Who is asked what on the demo's test rows, through the server. Says nothing by itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from polygraft.client import AdapterVersion
from polygraft.trainer.data import Example
from polygraft.trainer.demo.recipes import NAMES, SUMMARY
from polygraft.trainer.demo.traffic import Swap
from polygraft.trainer.remote import server_asker
from polygraft.trainer.scoring import Prompt, Subject, score_subject
from polygraft.trainer.shots import with_shots
from polygraft.trainer.source import Source

SHOTS = 2
"""Solved rows that the base is shown, drawn from the train split."""
Boards = dict[str, list[Subject]]
"""By task: the base, the base behind solved rows, and the task's adapters, the last the best."""


def score_base(server: str, name: str, source: Source, prompt: Prompt) -> Subject:
    """The base without any help but its instruction."""
    ask = server_asker(server, "", by_variables=False)
    return score_subject(f"base, {name}", prompt, source.splits.test, ask)


def score_shots(server: str, name: str, source: Source, prompt: Prompt) -> Subject:
    """The base behind a few solved rows: in-context learning, which trains nothing."""
    solved = random.Random(0).sample(source.splits.train, SHOTS)
    pairs = [with_shots(prompt, solved, row) for row in source.splits.test]
    ask = server_asker(server, "", by_variables=False)
    title = f"base, {SHOTS} shots, {name}"
    return score_subject(title, pairs[0][0], [row for _, row in pairs], ask)


def score_version(server: str, source: Source, version: AdapterVersion) -> Subject:
    """A version, asked as its callers ask it."""
    ask = server_asker(server, version.digest, by_variables=True)
    title = f"{version.adapter_name}@{version.number}"
    return score_subject(title, source.prompt, source.splits.test, ask)


def same_as_alone(swap: Swap, alone: Mapping[int, Subject], test: Sequence[Example]) -> int:
    """Answers of the swap that are word for word what their version says without one."""
    row_of = {str(row.variables): number for number, row in enumerate(test)}
    same = 0
    for answered in swap.load.answered:
        version = answered.generation.version
        assert version is not None
        row = row_of[str(answered.request["variables"])]
        same += alone[version.number].answers[row].text == answered.generation.text
    return same


def highlights(boards: Boards, swap: Swap) -> list[tuple[str, str]]:
    """Figures for the head of the page."""

    def span(board: list[Subject], metric: str) -> str:
        return f"{board[0].value(metric):.0f} → {board[-1].value(metric):.0f}"

    return [
        (span(boards[SUMMARY], "rougeL"), f"ROUGE-L on {SUMMARY}, base → LoRA"),
        (span(boards[NAMES], "exact_match"), f"exact match on {NAMES}, base → soft prompt"),
        (f"{len(swap.load.answered)}", "answers while the alias moved"),
        (f"{len(swap.load.failed)}", "of them failed"),
    ]
