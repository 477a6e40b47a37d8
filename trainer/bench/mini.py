"""The mini suites: rows of the bundled world with the fields of the originals, made from a seed.

They stand in where the originals are not at hand, and say nothing about the originals. People bear
names from the list that the bundled base was trained with, all of them, so that a report can
exchange names it knows for names it does not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from polygraft.trainer.base import drills
from polygraft.trainer.bench import suites
from polygraft.trainer.bench.data import BenchTask, hash_rows
from polygraft.trainer.bench.suites import Definition
from polygraft.trainer.rows import Row
from polygraft.trainer.tasks import stories, velka
from polygraft.trainer.tasks.dialogues import Dialogue, make_dialogue, make_group_chat
from polygraft.trainer.tasks.stories import Story
from polygraft.trainer.tasks.words import DAYS, ITEMS, LISTED, PLACES

ROWS = 120
SHOTS = 5
SEED = 0

MakeRow = Callable[[random.Random], Row]


def make_tasks(suite: str, *, rows: int = ROWS, seed: int = SEED) -> list[BenchTask]:
    """The tasks of a mini suite; the same seed gives the same rows."""
    return [_make(definition, maker, rows, seed) for definition, maker in _MAKERS[suite]()]


def _make(definition: Definition, maker: MakeRow, rows: int, seed: int) -> BenchTask:
    rng = random.Random(f"{definition.name}/{seed}")
    made = _distinct(maker, rng, rows + SHOTS)
    return BenchTask(
        definition.name,
        definition,
        made[SHOTS:],
        made[:SHOTS],
        f"made, seed {seed}",
        hash_rows(made[SHOTS:]),
    )


def _distinct(maker: MakeRow, rng: random.Random, count: int) -> list[Row]:
    found: dict[str, Row] = {}
    for _ in range(50 * count):
        row = maker(rng)
        found.setdefault(repr(row), row)
        if len(found) == count:
            break
    return list(found.values())


def _sst2(rng: random.Random) -> Row:
    label = rng.randrange(2)
    words = (drills.BAD, drills.GOOD)[label]
    sentence = rng.choice(drills.SENTIMENT_TEMPLATES).format(
        thing=rng.choice(drills.THINGS), word=rng.choice(words)
    )
    return {"sentence": sentence, "label": label}


def _rte(rng: random.Random) -> Row:
    story = _story(rng)
    label = rng.randrange(2)
    claim = story.summary if label == 0 else _altered(rng, story)
    return {"sentence1": story.text, "sentence2": claim, "label": label}


def _boolq(rng: random.Random) -> Row:
    chat = _chat(rng)
    label = rng.randrange(2)
    day = chat.slots["day"] if label else _other(rng, DAYS, chat.slots["day"])
    question = f"did {chat.slots['a']} and {chat.slots['b']} talk about {day} in the end"
    return {"passage": chat.text, "question": question, "label": label}


def _copa(rng: random.Random) -> Row:
    story = _story(rng)
    wrong = _altered(rng, story)
    label = rng.randrange(2)
    choices = (story.summary, wrong) if label == 0 else (wrong, story.summary)
    return {
        "premise": story.text,
        "choice1": choices[0],
        "choice2": choices[1],
        "question": "effect",
        "label": label,
    }


def _velka_question(rng: random.Random) -> Row:
    english, word = rng.choice(list(velka.WORDS.items()))
    return _of_four(rng, f"Which word is it in Velka? {english}", word, tuple(velka.WORDS.values()))


def _chat_question(rng: random.Random) -> Row:
    chat = _chat(rng)
    return _of_four(rng, f"{chat.text}\nOn which day?", chat.slots["day"], DAYS)


def _story_question(rng: random.Random) -> Row:
    story = _story(rng)
    return _of_four(rng, f"{story.text}\nWhat kind of story is it?", story.kind, stories.KINDS)


def _look_up(rng: random.Random) -> Row:
    english, word = rng.choice(list(velka.WORDS.items()))
    others = rng.sample([w for w in velka.WORDS.values() if w != word], 3)
    return _by_text(rng, f"Look up the Velka word.\n{english}", word, others)


def _topic(rng: random.Random) -> Row:
    label = rng.choice(list(drills.TOPICS))
    text = " ".join(rng.sample(drills.TOPICS[label], rng.choice((1, 2))))
    others = [topic for topic in drills.TOPICS if topic != label]
    return _by_text(rng, f"What is the topic?\n{text}", label, others)


def _speakers(rng: random.Random) -> Row:
    chat = _renamed(rng, make_group_chat(rng))
    right = chat.speakers
    stranger = _other(rng, LISTED, *right)
    # Why as many names each: of two lists the shorter one is always the likelier.
    wrong = [right[::-1], [*right[:-1], stranger], [stranger, *right[1:]]]
    others = list(dict.fromkeys(", ".join(names) for names in wrong if names != right))
    return _by_text(rng, f"List the speakers.\n{chat.text}", ", ".join(right), others)


def _sum(rng: random.Random) -> Row:
    left, right = rng.randrange(100), rng.randrange(100)
    total = left + right
    others = [str(total + step) for step in rng.sample((-10, -1, 1, 10), 3) if total + step >= 0]
    return _by_text(rng, f"Add the numbers.\n{left} + {right}", str(total), others)


def _of_four(rng: random.Random, question: str, right: str, pool: Sequence[str]) -> Row:  # MMLU
    choices = [right, *rng.sample([word for word in pool if word != right], 3)]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right)}


def _by_text(rng: random.Random, inputs: str, right: str, others: Sequence[str]) -> Row:
    options = [right, *others]
    rng.shuffle(options)
    return {
        "inputs": inputs,
        "targets": [right],
        "multiple_choice_targets": options,
        "multiple_choice_scores": [int(option == right) for option in options],
    }


def _story(rng: random.Random) -> Story:
    story = stories.make_story(rng)
    names = dict(zip((story.slots["a"], story.slots["b"]), rng.sample(LISTED, 2), strict=True))
    slots = {slot: names.get(value, value) for slot, value in story.slots.items()}
    return Story(story.kind, exchange(story.text, names), slots, exchange(story.summary, names))


def _chat(rng: random.Random) -> Dialogue:
    return _renamed(rng, make_dialogue(rng))


def _renamed(rng: random.Random, chat: Dialogue) -> Dialogue:
    names = dict(zip(chat.speakers, rng.sample(LISTED, len(chat.speakers)), strict=True))
    return replace(
        chat,
        lines=tuple((names[who], exchange(said, names)) for who, said in chat.lines),
        slots={slot: names.get(value, value) for slot, value in chat.slots.items()},
    )


def _altered(rng: random.Random, story: Story) -> str:
    """The summary with another thing, place or day: the facts of another story."""
    changed = [
        (story.slots[slot], _other(rng, pool, story.slots[slot]))
        for slot, pool in (("item", ITEMS), ("place", PLACES), ("day", DAYS))
        if re.search(rf"\b{re.escape(story.slots[slot])}\b", story.summary)
    ]
    return exchange(story.summary, dict([rng.choice(changed)]))


def _other(rng: random.Random, pool: Sequence[str], *taken: str) -> str:
    return rng.choice([value for value in pool if value not in taken])


def exchange(text: str, words: dict[str, str]) -> str:
    """The text with whole words exchanged, all at once."""
    if not words:
        return text
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b({pattern})\b", lambda match: words[match[0]], text)


def _named(name: str, definition: Definition) -> Definition:
    return replace(definition, name=f"mini_{name}")


def _glue() -> list[tuple[Definition, MakeRow]]:
    return [(_named("sst2", suites.glue("sst2")), _sst2), (_named("rte", suites.glue("rte")), _rte)]


def _superglue() -> list[tuple[Definition, MakeRow]]:
    return [
        (_named("boolq", suites.superglue("boolq")), _boolq),
        (_named("copa", suites.superglue("copa")), _copa),
    ]


def _mmlu() -> list[tuple[Definition, MakeRow]]:
    yaml = "mmlu/default/_default_template_yaml"
    made = {"velka": _velka_question, "chats": _chat_question, "stories": _story_question}
    return [
        (replace(_named(name, suites.mmlu(name)), yaml=yaml), maker) for name, maker in made.items()
    ]


def _bigbench() -> list[tuple[Definition, MakeRow]]:
    yaml = "bigbench/multiple_choice_template_a_yaml"
    made = {"lookup": _look_up, "topics": _topic, "speakers": _speakers, "sums": _sum}
    return [
        (replace(_named(name, suites.bigbench(name, choices=True)), yaml=yaml), maker)
        for name, maker in made.items()
    ]


_MAKERS: dict[str, Callable[[], list[tuple[Definition, MakeRow]]]] = {
    "mini-glue": _glue,
    "mini-superglue": _superglue,
    "mini-mmlu": _mmlu,
    "mini-bigbench": _bigbench,
}
