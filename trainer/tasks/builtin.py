"""The tasks that ship with the project, made from a seed.

Test rows hold people, and where a task has them wordings, that no train row holds; no split
repeats a row of another. The wordings of a `dsum` test row are new to the adapter, but the base
met them in other tasks; those of `dsum-unseen` are new to both. Nothing here needs torch.
"""

import random
from collections.abc import Callable, Mapping

from polygraft.trainer.tasks.dialogues import Dialogue, Wordings, make_dialogue
from polygraft.trainer.tasks.stories import make_story
from polygraft.trainer.tasks.support import make_support_chat
from polygraft.trainer.tasks.task import Row, Task, chat_recipe
from polygraft.trainer.tasks.tickets import Split, make_ticket
from polygraft.trainer.tasks.velka import make_pair
from polygraft.trainer.tasks.withheld import INSTRUCTIONS

DEFAULT_ROWS: dict[Split, int] = {"train": 600, "validation": 100, "test": 150}

MAX_REPEATS = 1000
"""Draws in a row without a new input after which a task counts as exhausted."""

MakeRow = Callable[[random.Random, Split], Row]
"""(random source, split) -> a row without its id."""


def _dsum(rng: random.Random, split: Split) -> Row:
    return _summary(make_dialogue(rng, wordings=split, held_out=split != "train"))


def _dsum_unseen(rng: random.Random, split: Split) -> Row:
    wordings: Wordings = "unseen" if split == "test" else split
    return _summary(make_dialogue(rng, wordings=wordings, held_out=split != "train"))


def _summary(dialogue: Dialogue) -> Row:
    return {
        "group": dialogue.wording,
        "variables": {"dialogue": dialogue.text},
        "completion": dialogue.summary,
        "slots": dialogue.slots,
    }


def _support(rng: random.Random, split: Split) -> Row:
    made = make_support_chat(rng, split=split, held_out=split != "train")
    return {
        "group": made.chat.wording,
        "variables": {"dialogue": made.chat.text},
        "completion": made.summary,
        "slots": {**made.chat.slots, "action": made.action},
    }


def _names(rng: random.Random, split: Split) -> Row:
    chat = make_dialogue(rng, wordings=split, held_out=split != "train")
    return {
        "group": chat.wording,
        "variables": {"dialogue": chat.text},
        "completion": ", ".join(chat.speakers),
    }


def _duty(rng: random.Random, split: Split) -> Row:
    chat = make_dialogue(rng, wordings=split, held_out=split != "train")
    return {
        "group": chat.wording,
        "variables": {"dialogue": chat.text},
        "completion": f"{chat.slots['day']}: {chat.slots['b']}",
    }


def _story(rng: random.Random, split: Split) -> Row:
    story = make_story(rng, held_out=split != "train")
    return {"group": story.kind, "variables": {"story": story.text}, "completion": story.summary}


def _route(rng: random.Random, split: Split) -> Row:
    text, team = make_ticket(rng, split=split, held_out=split != "train")
    return {"group": team, "variables": {"ticket": text}, "completion": team}


def _vel2en(rng: random.Random, split: Split) -> Row:
    english, velka = make_pair(rng)
    return {"group": english, "variables": {"text": velka}, "completion": english}


_MAKERS: dict[str, tuple[MakeRow, str, str, int, bool]] = {
    # name: (maker, variable, metric, max output tokens, instruction stands in the recipe)
    "dsum": (_dsum, "dialogue", "rougeL", 64, True),
    "dsum-unseen": (_dsum_unseen, "dialogue", "rougeL", 64, True),
    "support": (_support, "dialogue", "rougeL", 96, True),
    "names": (_names, "dialogue", "exact_match", 48, False),
    "duty": (_duty, "dialogue", "exact_match", 32, False),
    "story": (_story, "story", "exact_match", 48, False),
    "route": (_route, "ticket", "exact_match", 8, True),
    "vel2en": (_vel2en, "text", "exact_match", 32, True),
}
TASKS: tuple[str, ...] = tuple(_MAKERS)


def make_task(name: str, *, seed: int = 0, rows: Mapping[str, int] | None = None) -> Task:
    """Makes one of `TASKS`: the same seed and row counts give the same rows.

    Raises:
        ValueError: no such task or split, or more distinct rows asked for than the task can make.
    """
    if name not in _MAKERS:
        raise ValueError(f"no built-in task {name!r}; choose one of {', '.join(TASKS)}")
    chosen = dict(rows or {})
    if unknown := chosen.keys() - DEFAULT_ROWS.keys():
        raise ValueError(f"no split {', '.join(sorted(unknown))}; splits are {list(DEFAULT_ROWS)}")
    maker, variable, metric, max_tokens, instructed = _MAKERS[name]
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {
        split: _distinct_rows(maker, name, split, chosen.get(split, count), seed, seen)
        for split, count in DEFAULT_ROWS.items()
    }
    instruction = INSTRUCTIONS[name][0] if instructed else ""
    recipe = chat_recipe(instruction, variable, max_output_tokens=max_tokens)
    return Task(name, recipe, metric, splits, INSTRUCTIONS[name])


def _distinct_rows(
    maker: MakeRow, name: str, split: Split, count: int, seed: int, seen: set[str]
) -> list[Row]:
    """`count` rows whose input no row in `seen` has; adds theirs to it."""
    rng = random.Random(f"{name}/{split}/{seed}")
    rows: list[Row] = []
    repeats = 0
    while len(rows) < count:
        row = maker(rng, split)
        text = "\n".join(row["variables"].values())
        repeats = repeats + 1 if text in seen else 0
        if repeats == MAX_REPEATS:
            raise ValueError(
                f"task {name!r} makes only {len(rows)} distinct {split} rows; ask for fewer"
            )
        if not repeats:
            seen.add(text)
            rows.append({"id": f"{name}-{split}-{len(rows)}", **row})
    return rows
