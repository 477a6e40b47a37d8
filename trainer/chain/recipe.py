"""A chain file: settings that all rounds share, and the rounds. Reads no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polygraft.trainer.config import Base, Data, Eval, Method, Optim, RunConfig, Runtime, Section
from polygraft.trainer.config_methods import Lora
from polygraft.trainer.recipe import parse_recipe, place_files, read_document, validated

SHARED = ("seed", "base", "method", "optim", "eval", "runtime")


class Replay(Section):
    """Rows of every earlier round that are mixed into a later one."""

    rate: float = Field(default=1.0, gt=0)
    cap: int | None = Field(default=None, gt=0, description="rows of each earlier round")


class Round(Section):
    """One round: its data, and what it does otherwise than the chain says."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")
    data: Data
    method: Method | None = None
    optim: Optim | None = None
    eval: Eval | None = None


class ChainRecipe(Section):
    """Rounds that go on from each other, beside the same rounds from the base alone."""

    version: Literal[1] = 1
    name: str = Field(default="chain", pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")
    rounds: tuple[Round, ...] = Field(min_length=2)
    replay: Replay | None = Field(
        default=None, description="also train each later round with rows of the earlier ones"
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    base: Base = Base()
    method: Method = Lora()
    optim: Optim = Optim()
    eval: Eval = Eval()
    runtime: Runtime = Runtime()
    output: Path = Path("chains")


def load_chain(path: Path, overrides: Sequence[str] = ()) -> tuple[ChainRecipe, list[RunConfig]]:
    """The chain in a file, and one recipe per round without what links them.

    File names are relative to the chain file. Raises RecipeError.
    """
    document = read_document(path, overrides)
    for section in (document, *_mappings(document.get("rounds"))):
        place_files(section, path.parent)
    return parse_chain(document, file=str(path))


def parse_chain(
    document: Mapping[str, Any], *, file: str | None = None
) -> tuple[ChainRecipe, list[RunConfig]]:
    """`load_chain` of a mapping."""
    chain = validated(ChainRecipe, document, file=file)
    names = [one.name for one in chain.rounds]
    shared = {key: document[key] for key in SHARED if key in document}
    recipes = []
    for number, one in enumerate(document["rounds"]):
        merged = _merged(shared, one)
        place = f"{file or 'chain'}: rounds[{number}]"
        recipes.append(parse_recipe({**merged, "output": str(chain.output)}, file=place))
    if len(set(names)) < len(names):
        from polygraft.trainer.errors import RecipeError

        raise RecipeError("two rounds have the same name.", file=file, item="rounds")
    return chain, recipes


def _merged(shared: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """A round's settings over the shared ones, key by key but for another method."""
    merged = {**shared, **one}
    for key in ("optim", "eval"):
        if isinstance(shared.get(key), Mapping) and isinstance(one.get(key), Mapping):
            merged[key] = {**shared[key], **one[key]}
    return merged


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
