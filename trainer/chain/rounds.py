"""Which runs a chain is made of, and their training. Scores nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from polygraft.trainer.chain.recipe import ChainRecipe, Replay
from polygraft.trainer.config import Data, Ingredient, RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.progress import Observer


def after(name: str) -> str:
    """The state after a round that went on from the one before."""
    return f"after {name}"


def replayed(name: str) -> str:
    """The same with rows of earlier rounds."""
    return f"after {name}, with replay"


def alone(name: str) -> str:
    """A round from the base alone."""
    return f"{name} alone"


def train_rounds(
    chain: ChainRecipe, recipes: Sequence[RunConfig], directory: Path, observer: Observer
) -> dict[str, Path]:
    """State to its run directory, in the order of the table."""
    first, *later = recipes
    runs = {after(first.name): _train(first, after(first.name), directory, observer, None, ())}
    before = before_replayed = runs[after(first.name)]
    for number, recipe in enumerate(later, 1):
        name = recipe.name
        before = _train(recipe, after(name), directory, observer, before, ())
        runs[after(name)] = before
        if chain.replay is not None:
            earlier = [_replay(one.data, chain.replay) for one in recipes[:number]]
            before_replayed = _train(
                recipe, replayed(name), directory, observer, before_replayed, earlier
            )
            runs[replayed(name)] = before_replayed
        runs[alone(name)] = _train(recipe, alone(name), directory, observer, None, ())
    return runs


def _train(
    recipe: RunConfig,
    state: str,
    directory: Path,
    observer: Observer,
    before: Path | None,
    mixed: Sequence[Ingredient],
) -> Path:
    from polygraft.trainer.run import train

    observer.note(f"{state}:")
    data = recipe.data.model_copy(update={"mixture": (*recipe.data.mixture, *mixed)})
    name = state.removeprefix("after ").replace(", with ", "-").replace(" ", "-")
    changed = {"name": name, "output": directory, "init_from": before, "data": data}
    return train(recipe.model_copy(update=changed), observer, score_test=False).directory


def _replay(data: Data, replay: Replay) -> Ingredient:
    """Train rows of an earlier round as a source."""
    if data.task:
        return Ingredient(task=data.task, rate=replay.rate, cap=replay.cap)
    shape = data.model_dump(include={"template", "completion", "wrap", "system"})
    split = data.split
    return Ingredient(data=data.train, split=split, rate=replay.rate, cap=replay.cap, **shape)


def make_folder(chain: ChainRecipe) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    directory = chain.output / f"{chain.name}-{stamp}"
    number = 2
    while directory.exists():
        directory = chain.output / f"{chain.name}-{stamp}-{number}"
        number += 1
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise RecipeError(
            f"cannot make the folder: {error.strerror}.", file=str(directory), item="output"
        ) from None
    return directory


def remove_if_empty(directory: Path) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()
