"""A grid over settings of one recipe, as a comparison; and which of its points is the best.

Best is the highest mean on the test split over seeds and rows. Points that it is not shown to be
above are named beside it: the pick among equals is chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polygraft.trainer.compare.recipe import Comparison, parse_comparison
from polygraft.trainer.compare.result import ArmResult, Rows
from polygraft.trainer.compare.run import Outcome
from polygraft.trainer.compare.verdicts import extremes, not_to_be_told_apart
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.recipe import place_files, read_document

MAX_POINTS = 200


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes."""

    key: str
    values: tuple[Any, ...]

    @property
    def short(self) -> str:
        """What it is called in the names of points."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True)
class Best:
    """The best point of a finished sweep."""

    name: str
    rows: Rows
    equals: list[str]
    """Points that it is not shown to be above."""

    def sentence(self) -> str:
        """The verdict."""
        text = f"best: {self.name}, {self.rows.estimate()}"
        if self.equals:
            return f"{text}; not to be told apart from {', '.join(self.equals)}"
        return f"{text}; shown to be above all others"


def parse_axis(text: str) -> Axis:
    """`method.r=4,8,16`; each value is read as YAML. Raises RecipeError."""
    key, sign, values = text.partition("=")
    if not sign or not key or not values:
        raise RecipeError(
            f"--over needs key=value,value, found {text!r}.", hint="E.g. --over method.r=4,8,16"
        )
    try:
        read = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise RecipeError(f"--over {key}: the values are not valid YAML: {error}") from None
    numbers = tuple(_number(value) for value in read)
    if len({repr(value) for value in numbers}) < len(numbers):
        raise RecipeError(f"--over {key}: a value stands there twice.")
    return Axis(key, numbers)


def make_sweep(
    recipe: Path, axes: Sequence[Axis], overrides: Sequence[str], seeds: tuple[int, ...]
) -> Comparison:
    """Every combination of the axes' values as an arm. Raises RecipeError, that names the point."""
    if len({axis.key for axis in axes}) < len(axes):
        raise RecipeError("--over names a key twice.")
    document = read_document(recipe, overrides)
    place_files(document, recipe.parent)
    points = list(itertools.product(*(axis.values for axis in axes)))
    if len(points) > MAX_POINTS:
        raise RecipeError(f"{len(points)} points; at most {MAX_POINTS}.", item="--over")
    name = str(document.pop("name", recipe.stem))
    document.pop("seed", None)
    document.pop("output", None)
    arms = {}
    for point in points:
        settings = dict(zip((axis.key for axis in axes), point, strict=True))
        arms[point_name(axes, point)] = {
            "group": "sweep",
            "recipe": _changed(document, settings),
        }
    content = {"name": f"{name}-sweep", "seeds": list(seeds), "arms": arms}
    return parse_comparison(content, file=str(recipe))


def point_name(axes: Sequence[Axis], point: Sequence[Any]) -> str:
    """`r=8,lr=0.005`; a value that is a list has its parts joined by dots."""
    return ",".join(
        f"{axis.short}={_shown(value)}" for axis, value in zip(axes, point, strict=True)
    ).lower()


def find_best(outcome: Outcome) -> Best | None:
    """None where no point has a score."""
    known = {
        name: rows
        for name, result in outcome.results.items()
        if result.records and (rows := result.rows()) is not None
    }
    if not known:
        return None
    name, _ = extremes(known)
    return Best(name, known[name], not_to_be_told_apart(known) if len(known) > 1 else [])


def x_of(result: ArmResult, axes: Sequence[Axis]) -> float | None:
    """Where a point stands in the picture: the value swept, or its trained parameters."""
    if len(axes) == 1:
        value = _setting(result.arm.recipe, axes[0].key)
        return float(value) if isinstance(value, int | float) else None
    return result.cost("trained_parameters")


def _setting(document: Mapping[str, Any], key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _changed(document: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The document with dotted keys set, itself unchanged."""
    changed: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(document)))
    for key, value in settings.items():
        *parents, last = key.split(".")
        section = changed
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise RecipeError(f"--over {key}: {parent} is a value, not a section.")
        section[last] = value
    return changed


def _number(value: Any) -> Any:
    """YAML takes 1e-3 for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ".".join(map(_shown, value)).replace("-", "m")
    return str(value).replace("_", "-")
