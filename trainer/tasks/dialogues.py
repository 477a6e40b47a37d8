"""A grammar of short chats between two friends, with the facts each chat states.

Every chat has one purpose (`kind`), an ask in one of several wordings and an answer in one of
several wordings, small talk that names other days, places and people, and sometimes a correction
("No wait, Friday"), so that the facts cannot be read off by position.

Wordings are `known` (the pre-training corpus uses them, in other tasks) or `unseen` (nothing that
trains a model may use them). The known ones are dealt out to the splits of a task: `train`,
`validation` and `test` share none.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from polygraft.trainer.tasks.words import (
    ACTIVITIES,
    DAYS,
    EVENTS,
    ITEMS,
    PLACES,
    REASONS,
    TIMES,
    pick_people,
)

Wordings = Literal["known", "train", "validation", "test", "unseen"]
"""`known` is the union of `train`, `validation` and `test`."""

SUMMARIES = {
    "meet": "{a} and {b} will {activity} at the {place} on {day} at {time}.",
    "decline": "{b} cannot {activity} with {a} on {day} because {b} {reason}.",
    "move": "{a} and {b} moved the {event} from {old} to {day} at {time}.",
    "bring": "{b} will bring the {item} to the {place} on {day} for {a}.",
    "borrow": "{b} lends {a} the {item} until {day}.",
}
KINDS = tuple(SUMMARIES)
SLOTS = {  # the facts a summary must get right
    "meet": ("a", "b", "activity", "place", "day", "time"),
    "decline": ("a", "b", "activity", "day", "reason"),
    "move": ("a", "b", "event", "old", "day", "time"),
    "bring": ("a", "b", "item", "place", "day"),
    "borrow": ("a", "b", "item", "day"),
}
CORRECTABLE = {
    "meet": ("place", "day", "time"),
    "decline": ("activity", "day"),
    "move": ("day", "time"),
    "bring": ("item", "place", "day"),
    "borrow": ("item", "day"),
}
_POOLS = {
    "activity": ACTIVITIES,
    "place": PLACES,
    "day": DAYS,
    "old": DAYS,
    "time": TIMES,
    "event": EVENTS,
    "item": ITEMS,
}

ASKS = {
    "meet": {
        "known": (
            "Do you want to {activity} at the {place} on {day} at {time}?",
            "Shall we {activity} on {day}? The {place}, {time}.",
            "I would like to {activity} with you. {day} at {time}, at the {place}?",
            "Let us {activity} at the {place}. Is {time} on {day} good for you?",
            "Are you free on {day} at {time}? We could {activity} at the {place}.",
            "How about the {place} on {day}? We can {activity} there at {time}.",
            "Come to the {place} at {time} on {day} and {activity} with me!",
            "At {time} on {day} I will be at the {place}. Do you want to {activity}?",
        ),
        "unseen": (
            "Can we {activity} at {time} on {day}? I like the {place}.",
            "My plan for {day}: {activity} at the {place}, from {time}. Are you in?",
            "Will you {activity} with me at the {place}? {day}, {time}.",
        ),
    },
    "decline": {
        "known": (
            "Do you want to {activity} on {day}?",
            "Shall we {activity} together on {day}?",
            "{day} is free for me. Let us {activity}!",
            "I want to {activity} on {day}. Will you come?",
            "Are you coming to {activity} on {day}?",
            "On {day} we could {activity}. What do you say?",
        ),
        "unseen": (
            "Can we {activity} on {day}?",
            "I need someone to {activity} with me on {day}. You?",
            "What about {day}? I would love to {activity}.",
        ),
    },
    "move": {
        "known": (
            "Can we move the {event} from {old} to {day} at {time}?",
            "The {event} on {old} does not work for me. Is {day} at {time} fine?",
            "About the {event} on {old}: could we do it on {day} at {time}?",
            "I cannot make it to the {event} on {old}. How about {time} on {day}?",
            "Is {day} at {time} better for the {event}? On {old} I am busy.",
            "Let us have the {event} on {day} at {time} and not on {old}.",
        ),
        "unseen": (
            "Could the {event} be on {day}, {time}? {old} is bad for me.",
            "{old} is too early for the {event}. I would rather take {day}, {time}.",
            "I have a problem with {old}. May we shift the {event} to {time} on {day}?",
        ),
    },
    "bring": {
        "known": (
            "Can you bring the {item} to the {place} on {day}?",
            "I need the {item} at the {place} on {day}. Can you take it there?",
            "On {day} we meet at the {place}. Please bring the {item}.",
            "Please do not forget the {item} on {day}. We are at the {place}.",
            "Could you come to the {place} on {day} with the {item}?",
            "The {item} is still at your house. Bring it to the {place} on {day}, please.",
        ),
        "unseen": (
            "We need the {item} on {day}. Can you carry it to the {place}?",
            "For {day} at the {place} we still need the {item}. Do you have it?",
            "Who takes the {item} to the {place} on {day}? Can you?",
        ),
    },
    "borrow": {
        "known": (
            "Can I borrow your {item}? You get it back on {day}.",
            "I need a {item}. May I have yours until {day}?",
            "Could you lend me your {item}? I will return it on {day}.",
            "Do you need your {item}? I would like to use it until {day}.",
            "Until {day} I have no {item}. Can I take yours?",
            "May I use your {item} for some time? I can bring it back on {day}.",
        ),
        "unseen": (
            "Is your {item} free until {day}? I want to borrow it.",
            "My {item} is broken. Can yours stay with me until {day}?",
            "Would you give me your {item}? On {day} it is yours again.",
        ),
    },
}
ANSWERS = {
    "yes": {
        "known": (
            "Yes, good idea.",
            "Sure, no problem.",
            "That works for me.",
            "Fine, I will do that.",
            "Of course!",
            "Great, see you then.",
            "Okay, with pleasure.",
        ),
        "unseen": ("Yes, that is fine.", "All right, count on me.", "Perfect, I agree."),
    },
    "no": {
        "known": (
            "Sorry, {first}.",
            "No, {first}.",
            "I would love to, but {first}.",
            "I cannot, {first}.",
            "Not this time. {first}.",
            "Oh no, {first} on that day.",
        ),
        "unseen": (
            "Sadly not, because {first}.",
            "What a pity, {first}.",
            "It is not possible: {first}.",
        ),
    },
}
CORRECTIONS = {
    "known": ("No wait, {value}.", "Sorry, I mean {value}.", "Oh, not {wrong}: {value}!"),
    "unseen": (
        "Wrong, I mean {value}.",
        "Forget {wrong}, make it {value}.",
        "Hm, {value} is what I mean.",
    ),
}
SMALL_TALK = (
    "Hi {other}!",
    "Hello {other}, how are you?",
    "I am fine, thanks.",
    "The weather is so nice today.",
    "I was at the {place} on {day}.",
    "{third} says hello.",
    "Did you see {third} at the {place}?",
    "I had a long day.",
    "{third} has a new {item}.",
    "I lost my {item} on {day}.",
    "My sister wants to {activity}.",
    "It was so cold on {day}.",
    "I slept until {time}.",
    "Work was hard today.",
    "Your {item} looks great.",
    "I miss you!",
    "Have you heard from {third}?",
    "What a week.",
)


@dataclass(frozen=True)
class Dialogue:
    """One chat: `lines` are (speaker, text); `slots` the facts by name; `wording` its templates."""

    kind: str
    lines: tuple[tuple[str, str], ...]
    slots: dict[str, str]
    wording: str

    @property
    def text(self) -> str:
        """The chat as it is shown to a model: one `Name: words` line per turn."""
        return "\n".join(f"{speaker}: {words}" for speaker, words in self.lines)

    @property
    def summary(self) -> str:
        """The one summary that counts as an exact match."""
        return SUMMARIES[self.kind].format(**self.slots)

    @property
    def speakers(self) -> list[str]:
        """Everyone who says something, in order of the first line."""
        return list(dict.fromkeys(speaker for speaker, _ in self.lines))


def make_dialogue(
    rng: random.Random,
    *,
    kind: str | None = None,
    wordings: Wordings = "known",
    held_out: bool = False,
) -> Dialogue:
    """A chat of four to nine lines; `held_out` picks people that training never uses."""
    kind = kind or rng.choice(KINDS)
    a, b, third = pick_people(rng, 3, held_out=held_out)
    slots = _draw_slots(rng, kind, a, b)
    asked = dict(slots)
    correction: list[tuple[str, str]] = []
    if rng.random() < 0.3:
        slot = rng.choice(CORRECTABLE[kind])
        asked[slot] = _another(rng, slot, asked)
        line = rng.choice(choose(CORRECTIONS, wordings))
        correction = [(a, line.format(wrong=_said(slot, asked), value=_said(slot, slots)))]
    asks = choose(ASKS[kind], wordings)
    ask = rng.randrange(len(asks))
    answers = choose(ANSWERS["no" if kind == "decline" else "yes"], wordings)
    answer = rng.randrange(len(answers))
    first = REASONS.get(slots.get("reason", ""), "")
    lines = [
        *_small_talk(rng, a, b, third, rng.choice((0, 1, 1, 2, 3))),
        (a, asks[ask].format(**asked)),
        *correction,
        (b, answers[answer].format(first=first)),
        *_small_talk(rng, a, b, third, rng.choice((0, 0, 1, 2))),
    ]
    return Dialogue(kind, tuple(lines), slots, f"{wordings}-{kind}-{ask}-{answer}")


def choose(table: Mapping[str, tuple[str, ...]], wordings: Wordings) -> tuple[str, ...]:
    """The templates of a table that belong to a set of wordings.

    The last third of the known ones (at least one) is for testing, the one before for validation.
    """
    known = table["known"]
    last = len(known) - max(1, len(known) // 3)
    return {
        "known": known,
        "train": known[: last - 1],
        "validation": known[last - 1 : last],
        "test": known[last:],
        "unseen": table["unseen"],
    }[wordings]


def make_group_chat(rng: random.Random, *, held_out: bool = False) -> Dialogue:
    """Small talk of two to four speakers without a purpose; `third` people are only mentioned."""
    *speakers, third = pick_people(rng, rng.choice((3, 3, 4, 5)), held_out=held_out)
    lines: list[tuple[str, str]] = []
    for index in range(len(speakers) + rng.choice((0, 1, 2))):
        speaker = speakers[index] if index < len(speakers) else rng.choice(speakers)
        other = rng.choice([name for name in speakers if name != speaker])
        lines.append((speaker, _talk(rng, other, third)))
    return Dialogue("group", tuple(lines), {}, "group")


def _draw_slots(rng: random.Random, kind: str, a: str, b: str) -> dict[str, str]:
    slots = {"a": a, "b": b}
    for slot in SLOTS[kind][2:]:
        slots[slot] = rng.choice(list(REASONS)) if slot == "reason" else _another(rng, slot, slots)
    return slots


def _another(rng: random.Random, slot: str, slots: dict[str, str]) -> str:
    """A value for the slot that the chat does not use yet."""
    return rng.choice([value for value in _POOLS[slot] if value not in slots.values()])


def _said(slot: str, slots: dict[str, str]) -> str:
    article = "the " if slot in ("place", "item") else ""
    return article + slots[slot]


def _small_talk(
    rng: random.Random, a: str, b: str, third: str, count: int
) -> list[tuple[str, str]]:
    pairs = [(a, b), (b, a)]
    rng.shuffle(pairs)
    return [(pairs[i % 2][0], _talk(rng, pairs[i % 2][1], third)) for i in range(count)]


def _talk(rng: random.Random, other: str, third: str) -> str:
    return rng.choice(SMALL_TALK).format(
        other=other,
        third=third,
        place=rng.choice(PLACES),
        day=rng.choice(DAYS),
        item=rng.choice(ITEMS),
        activity=rng.choice(ACTIVITIES),
        time=rng.choice(TIMES),
    )
