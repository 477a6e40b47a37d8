"""What is compared: arms, seeds, and the targets that a preset has to reach. Reads no data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.recipe import parse_recipe, place_files, read_document

NAME = r"^[a-z0-9][a-z0-9._=,-]{0,62}$"


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(Section):
    """One way to get the task done."""

    group: str = Field(default="methods", description="part of the table it stands in")
    note: str = Field(default="", description="a few words for the table")
    shots: int | None = Field(
        default=None, ge=0, description="ask the base behind so many solved rows; trains nothing"
    )
    recipe: dict[str, Any] = Field(default={}, description="sections of a run's recipe")
    rounds: tuple[dict[str, Any], ...] = Field(
        default=(), description="each trained from the one before; the last is scored"
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="builtin:<name> whose test split is scored too"
    )
    forgetting: bool = Field(default=False, description="ask for the old skills")
    axes: bool = Field(default=False, description="score held-out people, wordings ... apart")
    seeds: tuple[int, ...] | None = Field(default=None, description="none: those of the comparison")

    @model_validator(mode="after")
    def _does_one_thing(self) -> Self:
        if self.shots is not None and (self.rounds or self.forgetting):
            raise ValueError("an arm with shots trains nothing: no rounds, no forgetting")
        if self.shots and self.axes:
            raise ValueError("axes are not scored behind shots")
        return self


class Target(Section):
    """A sentence that the figures have to make true.

    The figure is `metric` of arm `of`; less that of `over`; or in percent of that of `share_of`;
    or, of `spread`, how far the best arm is above the worst.
    """

    say: str
    of: str | None = None
    over: str | None = None
    share_of: str | None = None
    spread: tuple[str, ...] = ()
    metric: str = "auto"
    task: str | None = Field(default=None, description="none: the arm's own; `mean`: over all")
    at_least: float | None = None
    at_most: float | None = None
    shown: bool = Field(
        default=False, description="the 95 % interval of the difference must exclude 0"
    )

    @model_validator(mode="after")
    def _has_a_figure_and_a_bound(self) -> Self:
        if (self.of is None) == (not self.spread):
            raise ValueError("give either of or spread")
        if self.at_least is None and self.at_most is None and not self.shown:
            raise ValueError("give at_least, at_most or shown")
        if self.shown and not (self.over or self.spread):
            raise ValueError("shown needs over or spread")
        return self

    @property
    def arms(self) -> list[str]:
        """Those it speaks of."""
        return [name for name in (self.of, self.over, self.share_of, *self.spread) if name]


class Comparison(Section):
    """A whole comparison."""

    version: Literal[1] = 1
    name: str = Field(default="comparison", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    shared: dict[str, Any] = Field(default={}, description="recipe sections of every arm")
    general: str = Field(
        default="builtin:mix",
        description="old skills to ask for, or a file with skill, prompt, completion",
    )
    arms: dict[str, Arm] = Field(min_length=1)
    targets: tuple[Target, ...] = ()

    @model_validator(mode="after")
    def _speaks_of_its_arms(self) -> Self:
        for target in self.targets:
            for name in target.arms:
                if name not in self.arms:
                    raise ValueError(f"targets: no arm {name!r}{nearest(name, self.arms)}")
        return self

    def only(self, names: Sequence[str]) -> Comparison:
        """Some arms, and the targets that speak of no other. Raises RecipeError."""
        for name in names:
            if name not in self.arms:
                known = ", ".join(self.arms)
                raise RecipeError(
                    f"no arm {name!r}{nearest(name, self.arms)}",
                    item="--arm",
                    hint=f"Arms: {known}.",
                )
        arms = {name: arm for name, arm in self.arms.items() if name in names}
        targets = tuple(t for t in self.targets if all(name in arms for name in t.arms))
        return self.model_copy(update={"arms": arms, "targets": targets})

    def recipes_of(self, name: str) -> list[RunConfig]:
        """One per round of an arm, the seed not set. Raises RecipeError that names the arm."""
        arm = self.arms[name]
        rounds = arm.rounds or ({},)
        made = []
        for one in rounds:
            document = merged(merged(self.shared, arm.recipe), one)
            document = merged({"runtime": {"threads": 1}}, document)
            made.append(parse_recipe({**document, "name": slug(name)}, file=f"arm {name}"))
        return made


def presets() -> list[str]:
    """Names of the shipped comparisons."""
    folder = files("polygraft.trainer.compare") / "presets"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def load_preset(name: str) -> Comparison:
    """A shipped comparison. Raises RecipeError for an unknown name."""
    known = presets()
    if name not in known:
        raise RecipeError(
            f"no preset {name!r}{nearest(name, known)}",
            item="--preset",
            hint=f"Presets: {', '.join(known)}.",
        )
    text = (files("polygraft.trainer.compare") / "presets" / f"{name}.yaml").read_text("utf-8")
    return parse_comparison(yaml.safe_load(text), file=f"preset {name}")


def load_comparison(path: Path) -> Comparison:
    """A comparison of one's own; data files are taken relative to it. Raises RecipeError."""
    document = read_document(path)
    arms = document.get("arms")
    every = [a for a in arms.values() if isinstance(a, dict)] if isinstance(arms, dict) else []
    sections = [document.get("shared"), *(arm.get("recipe") for arm in every)]
    sections += [one for arm in every for one in arm.get("rounds") or ()]
    for section in sections:
        if isinstance(section, dict):
            place_files(section, path.parent)
    general = document.get("general")
    if isinstance(general, str) and not general.startswith("builtin:"):
        document["general"] = str((path.parent / general).resolve())
    return parse_comparison(document, file=str(path))


def parse_comparison(document: Mapping[str, Any], *, file: str | None = None) -> Comparison:
    """Validate a mapping, every arm's recipe included. Raises RecipeError with all problems."""
    try:
        comparison = Comparison.model_validate(document)
    except ValidationError as error:
        problems = dict.fromkeys(_sentence(dict(item)) for item in error.errors())
        raise RecipeError("\n".join(problems), file=file) from None
    for name in comparison.arms:
        comparison.recipes_of(name)
    return comparison


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, section by section; another method or task replaces the whole."""
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        if key == "method" or not isinstance(value, Mapping) or not isinstance(old, Mapping):
            result[key] = value
        else:
            result[key] = {**old, **value}
    return result


def slug(name: str) -> str:
    """An arm's name as that of a run."""
    return name.replace("=", "-").replace(",", "-")


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """The end of a sentence about an unknown name."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f", did you mean {match[0]!r}?" if match else "."


_SECTIONS: dict[str, type[BaseModel]] = {"arms": Arm, "targets": Target}


def _sentence(error: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"]]
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        section = _SECTIONS.get(place[0], Comparison) if len(place) > 1 else Comparison
        known = sorted(section.model_fields)
        return f"{key}: unknown key{nearest(place[-1], known)} Known: {', '.join(known)}."
    return f"{key or 'comparison'}: {str(error['msg']).removeprefix('Value error, ')}."
