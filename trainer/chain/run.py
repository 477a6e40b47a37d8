"""Trains the rounds of a chain and scores every test set in every state.

For each later round: from the round before; the same with rows of earlier rounds replayed, if the
chain says so; and from the base alone, to see what the earlier rounds were good for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.trainer.chain.recipe import ChainRecipe
from polygraft.trainer.chain.rounds import (
    after,
    alone,
    make_folder,
    remove_if_empty,
    replayed,
    train_rounds,
)
from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import Interrupted
from polygraft.trainer.progress import Observer, Silent
from polygraft.trainer.score import Score, difference
from polygraft.trainer.scoring import Subject, best_base_prompt, score_subject
from polygraft.trainer.source import Source, load_source

FILE = "chain.json"


@dataclass(frozen=True)
class State:
    """The base, or what some rounds made of it."""

    name: str
    run: Path | None
    """None for the base."""
    scores: Mapping[str, Subject]
    """By the round whose test set it is."""

    def score(self, test: HeldOut) -> Score:
        """The test set's own metric."""
        return self.scores[test.name].score(test.metric)


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of one round."""

    name: str
    metric: str
    source: Source


@dataclass(frozen=True)
class ChainResult:
    """Every state on every test set."""

    chain: ChainRecipe
    directory: Path
    tests: list[HeldOut]
    states: list[State]

    def changes(self) -> list[tuple[str, str, str, Score]]:
        """(state, compared with, test set, paired difference): what a later round did to the
        earlier test sets, and how far going on is above starting from the base."""
        states = {state.name: state for state in self.states}
        found = []
        for number, test in enumerate(self.tests):
            groups = [row.group for row in test.source.splits.test]
            for later in range(number, len(self.tests)):
                name = self.tests[later].name
                other = after(test.name) if later > number else alone(name)
                for variant in (after(name), replayed(name)):
                    if variant in states and other in states and variant != other:
                        change = difference(
                            states[variant].score(test), states[other].score(test), groups
                        )
                        if change is not None:
                            found.append((variant, other, test.name, change))
        return found

    def as_json(self) -> dict[str, Any]:
        """For chain.json and `--json`."""
        return {
            "schema": "polygraft.chain/1",
            "name": self.chain.name,
            "tests": [
                {"round": t.name, "metric": t.metric, "rows": len(t.source.splits.test)}
                for t in self.tests
            ],
            "states": [
                {
                    "state": state.name,
                    "run": state.run.name if state.run else None,
                    "scores": {name: s.as_json() for name, s in state.scores.items()},
                }
                for state in self.states
            ],
            "changes": [
                {
                    "state": one,
                    "compared_with": other,
                    "test": test,
                    "metric": score.metric,
                    "value": round(score.value or 0.0, 2),
                    "ci95": score.interval,
                }
                for one, other, test, score in self.changes()
            ],
        }


def run_chain(
    chain: ChainRecipe,
    recipes: Sequence[RunConfig],
    observer: Observer | None = None,
) -> ChainResult:
    """Train, score, and write `chain.json` with the runs beside it.

    Raises what training raises; finished rounds are kept then.
    """
    seen = observer or Silent()
    directory = make_folder(chain)
    try:
        runs = train_rounds(chain, recipes, directory, seen)
    except Interrupted as error:
        raise Interrupted(f"{error} Finished rounds are in {directory}.") from None
    except BaseException:
        remove_if_empty(directory)
        raise
    tests = [_test_set(recipe, runs[after(recipe.name)]) for recipe in recipes]
    states = [_score_base(recipes[0], tests, seen)]
    for name, run in runs.items():
        states.append(_score_run(name, run, recipes[0].base.path, tests, seen))
    result = ChainResult(chain, directory, tests, states)
    text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    hidden = directory / f".{FILE}.part"
    hidden.write_text(text + "\n", encoding="utf-8")
    os.replace(hidden, directory / FILE)
    return result


def _test_set(recipe: RunConfig, run: Path) -> HeldOut:
    from polygraft.trainer.recipe import load_resolved

    resolved = load_resolved(run)
    limit = resolved.eval.generate.max_new_tokens
    assert limit is not None  # resolved
    source = load_source(recipe.data).with_limit(limit)
    metric = source.metric if source.metric != "loss" else "rougeL"
    return HeldOut(recipe.name, metric, source)


def _score_base(recipe: RunConfig, tests: Sequence[HeldOut], observer: Observer) -> State:
    from polygraft.trainer.icl_asked import local_base

    ask = local_base(recipe.base.path).ask
    observer.note("scoring the base")
    scores = {}
    for test in tests:
        prompt = best_base_prompt(test.source, test.metric, ask)
        scores[test.name] = score_subject("base", prompt, test.source.splits.test, ask)
    return State("base", None, scores)


def _score_run(
    name: str, run: Path, base: str, tests: Sequence[HeldOut], observer: Observer
) -> State:
    from polygraft.trainer.local import load_candidate

    observer.note(f"scoring {name}")
    ask = load_candidate(run, base).ask_adapter
    scores = {
        test.name: score_subject(name, test.source.prompt, test.source.splits.test, ask)
        for test in tests
    }
    return State(name, run, scores)
