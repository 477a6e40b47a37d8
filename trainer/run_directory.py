"""The place of one run: written under a hidden name, renamed when it is complete.

Whoever sees `runs/<name>-<utc>-<hash>/` sees a whole run; a killed one leaves only the hidden
directory, which holds no `adapter/` that could be taken for a finished one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.recipe import RESOLVED

INTERRUPTED = ".interrupted"
JOURNAL = "pushes.jsonl"
"""One line for every push that published a version or moved an alias."""
READING_FILE = "soft_prompt.json"
"""What a soft prompt reads like, once `polygraft interpret` was asked."""


@dataclass(frozen=True)
class RunDirectory:
    """`work` is where the run writes, `final` the name it gets when it is complete."""

    work: Path
    final: Path

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """A fresh directory under `config.output`."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"{config.name}-{stamp}-{config_sha256(config)[:8]}"
        final = config.output / name
        number = 2
        while final.exists() or (config.output / f".{final.name}").exists():
            final = config.output / f"{name}-{number}"  # two equal runs in one second
            number += 1
        work = config.output / f".{final.name}"
        try:
            work.mkdir(parents=True)
        except OSError as error:
            raise RecipeError(
                f"cannot make the run directory: {error.strerror}.", file=str(work), item="output"
            ) from None
        return cls(work, final)

    @classmethod
    def reopen(cls, interrupted: Path) -> RunDirectory:
        """Take up an interrupted or killed run, under its hidden name again."""
        name = interrupted.name.removesuffix(INTERRUPTED).removeprefix(".")
        directory = cls(interrupted.with_name(f".{name}"), interrupted.with_name(name))
        if not cls(interrupted, directory.final).has_checkpoint:
            raise RecipeError(
                "has no checkpoint to go on from.",
                file=str(interrupted),
                item="--resume",
                hint="Start the recipe again.",
            )
        os.replace(interrupted, directory.work)
        return directory

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state that training can go on from."""
        return any(self.checkpoints.glob("checkpoint-*"))

    @property
    def checkpoints(self) -> Path:
        """Optimiser checkpoints and the best adapter so far; gone when the run is complete."""
        return self.work / "checkpoints"

    def write_json(self, name: str, value: Any) -> None:
        """One JSON file, readable."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        (self.work / name).write_text(text + "\n", encoding="utf-8")

    def append_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """More rows at the end of a JSONL file."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        with (self.work / name).open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """One JSONL file."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        (self.work / name).write_text("".join(lines), encoding="utf-8")

    def write_config(self, config: RunConfig) -> None:
        """The recipe with every automatic choice made; running it again gives the same adapter."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self.work / RESOLVED).write_text(text, encoding="utf-8")

    def complete(self) -> Path:
        """Make the run visible under its final name."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        os.replace(self.work, self.final)
        return self.final

    def keep_interrupted(self) -> Path:
        """Name the state reached so that it can be found and taken up again."""
        kept = self.final.with_name(self.final.name + INTERRUPTED)
        os.replace(self.work, kept)
        return kept

    def discard(self) -> None:
        """Remove everything the run wrote."""
        shutil.rmtree(self.work, ignore_errors=True)


def config_sha256(config: RunConfig) -> str:
    """Identity of what a run computes: the recipe without names and places of files."""
    content = config.model_dump(
        mode="json",
        exclude={
            "name": True,
            "output": True,
            "init_from": True,
            "base": {"path"},
            "data": {
                "train": True,
                "validation": True,
                "test": True,
                "mixture": {"__all__": {"data"}},
            },
            "method": {"fisher": {"data"}},
        },
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
