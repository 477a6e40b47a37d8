"""What has to be done: one job per arm and seed, with an identity that tells whether it is done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polygraft
from polygraft.trainer.compare.recipe import Arm, Comparison, slug
from polygraft.trainer.config import RunConfig

START_STEPS = 60
"""What loading and scoring take, in optimiser steps, to foretell when a comparison ends."""
ROWS = 600
"""Train rows of a built-in task."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed. Plain data, so that it goes to another process."""

    arm: str
    seed: int
    settings: Arm
    recipes: tuple[RunConfig, ...]
    """One per round."""
    account_memory: bool
    """Predict and measure a step's memory; once per arm, as it depends on no seed."""
    general: str
    """Where the old skills come from."""

    @property
    def key(self) -> str:
        """The name of its result: changes with whatever changes the result."""
        return f"{slug(self.arm)}-s{self.seed}-{self._sha256()[:10]}"

    @property
    def weight(self) -> float:
        """How long it takes beside others."""
        if self.settings.shots is not None:
            return START_STEPS
        return START_STEPS + sum(_steps(recipe) for recipe in self.recipes)

    def _sha256(self) -> str:
        content: dict[str, Any] = {
            "version": polygraft.__version__,
            "seed": self.seed,
            "recipes": [
                r.model_dump(mode="json", exclude={"output", "name"}) for r in self.recipes
            ],
            "arm": self.settings.model_dump(mode="json", exclude={"group", "note", "seeds"}),
            "account_memory": self.account_memory,
            "general": self.general,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_jobs(comparison: Comparison, runs: Path) -> list[Job]:
    """Seed by seed, so that one stopped early still has every arm. `runs` gets their runs."""
    jobs = []
    for index in range(max(len(_seeds(comparison, arm)) for arm in comparison.arms.values())):
        for name, arm in comparison.arms.items():
            seeds = _seeds(comparison, arm)
            if index < len(seeds):
                jobs.append(_job(comparison, name, seeds[index], runs, is_first=index == 0))
    return jobs


def _job(comparison: Comparison, name: str, seed: int, runs: Path, *, is_first: bool) -> Job:
    arm = comparison.arms[name]
    recipes = tuple(
        recipe.model_copy(
            update={
                "seed": seed,
                "output": runs,
                "name": f"{recipe.name}-s{seed}",
                "runtime": recipe.runtime.model_copy(
                    update={"account_memory": is_first and recipe.runtime.account_memory}
                ),
            }
        )
        for recipe in comparison.recipes_of(name)
    )
    return Job(name, seed, arm, recipes, is_first, comparison.general)


def _seeds(comparison: Comparison, arm: Arm) -> tuple[int, ...]:
    """An arm that draws nothing has one."""
    if arm.shots == 0:
        return comparison.seeds[:1]
    return arm.seeds or comparison.seeds


def _steps(recipe: RunConfig) -> float:
    rows = recipe.data.rows or ROWS
    return recipe.optim.epochs * rows / recipe.optim.batch
