"""Multi-task mixtures: train rows of several sources, by rate and cap, zero-shot and few-shot.

A source gives min(rows, cap) of its train rows, drawn by the run's seed, and `rate` times as many
of those are trained on (FLAN, Wei et al. 2021, arXiv:2109.01652, and its 2023 collection). Rows are
drawn from train splits alone, never from what is validated or tested. Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polygraft.trainer.checks import check_rows
from polygraft.trainer.config import Data, Ingredient, Split
from polygraft.trainer.data import Example, load_examples, rows_sha256
from polygraft.trainer.digests import digest
from polygraft.trainer.encode import Encoded, encode_examples
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.reader import make_reader, plain_prompt
from polygraft.trainer.shots import Prompt, with_shots
from polygraft.trainer.source import build_recipe, load_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIX = "builtin:mix"
"""The source that replays what the bundled base was trained on."""
MIX_ROWS = 1020
"""Different rows of `builtin:mix` that there are to draw from; 60 of each skill."""


@dataclass(frozen=True)
class Pool:
    """Everything that a source has to draw from. `prompts` are the wordings of its task."""

    rows: list[Example]
    prompts: list[Prompt]


@dataclass(frozen=True)
class Portion:
    """What one source gives to a mixture, each row as it is asked."""

    ingredient: Ingredient
    available: int
    distinct: int
    """Rows after the cap."""
    rows: list[tuple[Prompt, Example]]
    """`rate` times as many, in the form that each was given."""


@dataclass(frozen=True)
class Mixed:
    """One source of a mixture as it is trained on."""

    ingredient: Ingredient
    available: int
    distinct: int
    rows: list[Encoded]

    @property
    def sha256(self) -> str:
        """Identity of the rows, in their forms and order."""
        return rows_sha256(row.example for row in self.rows)


def mix(
    data: Data, seed: int, tokenizer: PreTrainedTokenizerBase, held_out: Sequence[Encoded]
) -> tuple[list[Mixed], list[str]]:
    """Every source of the section's mixture, and what is worth telling about them.

    Rows that stand in `held_out`, token for token, are dropped. Raises RecipeError and DataError.
    """
    assert data.max_length is not None
    known = {_ids(row) for row in held_out}
    mixed, notes = [], []
    for portion in draw_portions(data.mixture, data, seed):
        name = portion.ingredient.name
        rows = encode_portion(portion, tokenizer)
        kept = [row for row in rows if _ids(row) not in known]
        if len(kept) < len(rows):
            notes.append(f"dropped {len(rows) - len(kept)} rows of {name} that are held out here")
        checked = check_rows(
            f"mixture {name}", kept, data.max_length, data.on_overflow, repeats_are_meant=True
        )
        notes += checked.warnings
        mixed.append(Mixed(portion.ingredient, portion.available, portion.distinct, checked.rows))
    return mixed, notes


def draw_portions(mixture: Sequence[Ingredient], data: Data, seed: int) -> list[Portion]:
    """The rows that each source of a mixture gives. Deterministic by seed.

    `data` is the section that the mixture belongs to, whose held-out rows no source may hold.
    Raises RecipeError and DataError.
    """
    return [
        _draw(ingredient, _pool(ingredient, data, number), random.Random(f"{seed}/{number}"))
        for number, ingredient in enumerate(mixture)
    ]


def held_out_rows(ingredient: Ingredient, seed: int) -> Portion:
    """Up to `cap` rows of a source that no mixture trains on: the validation split of a task or of
    a split file, rows of `builtin:mix` that are not those replayed, all of any other file."""
    source = random.Random(f"held out/{seed}")
    if ingredient.task == MIX:
        return _draw(ingredient, _mix_pool("fisher"), source)
    if ingredient.task or ingredient.split:
        splits = load_source(_data_of(ingredient))
        return _draw(ingredient, Pool(splits.splits.validation, splits.base_prompts()), source)
    return _draw(ingredient, _file_pool(ingredient), source)


def encode_portion(portion: Portion, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The rows of a portion as ids. Raises DataError for a special token in their text."""
    return [
        encode_examples([example], build_recipe(prompt, tokenizer), tokenizer)[0]
        for prompt, example in portion.rows
    ]


def _ids(row: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row.prompt), tuple(row.completion)


def _draw(ingredient: Ingredient, pool: Pool, source: random.Random) -> Portion:
    order = list(range(len(pool.rows)))
    source.shuffle(order)
    kept = [pool.rows[index] for index in order[: ingredient.cap]]
    wanted = round(ingredient.rate * len(kept))
    if not wanted:
        raise RecipeError(
            f"rate {ingredient.rate:g} of {len(kept)} rows of {ingredient.name} is no row.",
            item="data.mixture",
            hint="Raise rate or cap.",
        )
    rows = [
        _formed(ingredient, pool, kept[number % len(kept)], source, number // len(kept))
        for number in range(wanted)
    ]
    return Portion(ingredient, len(pool.rows), len(kept), rows)


def _formed(
    ingredient: Ingredient, pool: Pool, row: Example, source: random.Random, again: int
) -> tuple[Prompt, Example]:
    """A row in one of the task's wordings, behind so many solved ones; a repeated row in others."""
    wording = _number(f"{row.content}/{again}/wording") % len(pool.prompts)
    forms = ingredient.forms
    count = forms[_number(f"{row.content}/{again}/form") % len(forms)]
    others = source.sample(pool.rows, min(count + 1, len(pool.rows)))
    shots = [other for other in others if other.content != row.content][:count]
    return with_shots(pool.prompts[wording], shots, row)


def _number(text: str) -> int:
    return int(digest(text)[:12], 16)


def _pool(ingredient: Ingredient, data: Data, number: int) -> Pool:
    if ingredient.task == MIX:
        return _mix_pool("replay")
    if ingredient.task:
        source = load_source(_data_of(ingredient))
        return Pool(source.splits.train, list(source.base_prompts()))
    if ingredient.data in (data.validation, data.test):
        raise RecipeError(
            f"{ingredient.name} is held out by this recipe, so it may not be trained on.",
            item=f"data.mixture[{number}].data",
        )
    if ingredient.data == data.train and not ingredient.split:
        ingredient = ingredient.model_copy(update={"split": data.split})
    if not ingredient.split:
        return _file_pool(ingredient)
    source = load_source(_data_of(ingredient))
    return Pool(source.splits.train, list(source.base_prompts()))


def _data_of(ingredient: Ingredient) -> Data:
    if ingredient.task:
        return Data(task=ingredient.task)
    shape = ingredient.model_dump(include={"template", "completion", "wrap", "system"})
    return Data(train=ingredient.data, split=ingredient.split or Split(), **shape)


def _file_pool(ingredient: Ingredient) -> Pool:
    assert ingredient.data is not None
    data = _data_of(ingredient)
    reader = make_reader(data, ingredient.data)
    return Pool(load_examples(ingredient.data, reader.pairs_of, None), [plain_prompt(reader, data)])


def _mix_pool(purpose: str) -> Pool:
    from polygraft.trainer.base.general_rows import training_rows
    from polygraft.trainer.tasks.task import chat_recipe

    rows = [
        Example(
            id=f"mix-{purpose}-{number}",
            group=row.skill,
            variables={"prompt": row.prompt},
            completion=row.answer,
            source=f"{MIX}.{purpose}:{number}",
        )
        for number, row in enumerate(training_rows(purpose, MIX_ROWS), 1)
    ]
    return Pool(rows, [chat_recipe("", "prompt", max_output_tokens=96)])
