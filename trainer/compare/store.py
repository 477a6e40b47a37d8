"""The folder of a comparison: a file per finished job, their runs, and what came of it.

A job is finished when its file is there; whatever else a stopped comparison left is removed when it
goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.trainer.compare.jobs import Job
from polygraft.trainer.errors import DataError, RecipeError


@dataclass(frozen=True)
class Store:
    """`folder/jobs/<key>.json` and `folder/runs/`."""

    folder: Path

    @property
    def runs(self) -> Path:
        """Where the jobs' run directories are."""
        return self.folder / "runs"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, keep others out, remove what nobody finished, before and after.

        Raises RecipeError where it cannot be made or another comparison is at work in it.
        """
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            self.runs.mkdir(exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise RecipeError(
                f"cannot be written: {error.strerror}.", file=str(self.folder), item="--out"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(
                    "another comparison is at work there.", file=str(self.folder), item="--out"
                ) from None
            self._remove_unfinished()
            try:
                yield
            finally:
                self._remove_unfinished()

    def read(self, job: Job) -> dict[str, Any] | None:
        """The result of a job that is finished. Raises DataError for a broken file."""
        path = self._path(job.key)
        if not path.is_file():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"is not valid JSON: {error}.", file=str(path), hint="Remove it to do it again."
            ) from None
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Keep a result."""
        write_atomically(self._path(record["key"]), json.dumps(record, ensure_ascii=False) + "\n")

    def _path(self, key: str) -> Path:
        return self.folder / "jobs" / f"{key}.json"

    def _remove_unfinished(self) -> None:
        """Run directories, hidden or interrupted ones too, that no finished job speaks of."""
        known = set()
        for path in (self.folder / "jobs").glob("*.json"):
            try:
                known |= set(json.loads(path.read_text(encoding="utf-8")).get("runs", ()))
            except ValueError:
                continue  # `read` names it
        for run in self.runs.iterdir():
            if run.name not in known:
                shutil.rmtree(run, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """All of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
