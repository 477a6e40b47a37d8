"""Finished runs, read back from what they wrote. Loads no model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.recipe import load_resolved
from polygraft.trainer.run_directory import INTERRUPTED


@dataclass(frozen=True)
class RunRecord:
    """One run directory. `report` is empty for an interrupted run."""

    directory: Path
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    servable: bool | None

    @property
    def name(self) -> str:
        """Of the run, also while it is written under its hidden name."""
        return self.directory.resolve().name.removeprefix(".")

    @property
    def is_complete(self) -> bool:
        """Whether it ended by itself."""
        return bool(self.report)

    @property
    def metric(self) -> str:
        """What it was judged by."""
        return str(self.config["eval"]["metric"])

    def score(self, subject: str, metric: str | None = None) -> float | None:
        """Of `base` or `adapter` on the test split; None where it was not measured."""
        for tested in self.report.get("test", []):
            if tested["subject"] == subject:
                found = tested["scores"].get(metric or self.metric)
                return found["value"] if found else None
        return None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.directory),
            "complete": self.is_complete,
            "servable": self.servable,
            "method": self.config["method"],
            "metric": self.metric,
            "base": self.score("base"),
            "adapter": self.score("adapter"),
            "cost": self.report.get("cost"),
        }


def find_runs(folder: Path) -> list[RunRecord]:
    """Every run in a folder, oldest first. Raises RecipeError when there is no such folder."""
    if not folder.is_dir():
        raise RecipeError("there is no such folder.", file=str(folder), hint="Name another one.")
    places = (path for path in folder.iterdir() if (path / "config.resolved.yaml").is_file())
    visible = [path for path in places if not path.name.startswith(".")]
    return [read_run(path) for path in sorted(visible, key=_stamp)]


def read_run(directory: Path) -> RunRecord:
    """Raises RecipeError or DataError when it is no run or its files are broken."""
    if not (directory / "config.resolved.yaml").is_file():
        raise RecipeError("is no run: it has no config.resolved.yaml.", file=str(directory))
    config = load_resolved(directory).model_dump(mode="json")
    report = _json(directory / "report.json")
    if not report and not directory.name.endswith(INTERRUPTED):
        raise DataError("the report is missing.", file=str(directory / "report.json"))
    servable = _json(directory / "manifest.json").get("servable")
    return RunRecord(directory, config, report, servable)


def differences(one: RunRecord, other: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value here, value there) of every setting in which two runs differ."""
    first, second = _flat(one.config), _flat(other.config)
    for key in dict.fromkeys([*first, *second]):
        if key.partition(".")[0] not in ("name", "output") and first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)


def _stamp(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"is not valid JSON: {error}.", file=str(path)) from None


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
