"""Tiny stories of four kinds with their facts and one canonical summary each."""

import random
from dataclasses import dataclass

from polygraft.trainer.tasks.words import DAYS, ITEMS, PLACES, pick_people

STORIES = {
    "lost": (
        (
            "{a} lost a {item} at the {place}.",
            "On {day} {a} could not find the {item}. It was left at the {place}.",
            "{a} went to the {place} with a {item} and came home without it.",
        ),
        ("{b} found it on {day}.", "Later {b} saw it there.", "{b} picked it up."),
        ("{a} was very happy.", "{a} said thank you.", "Now {a} takes better care of it."),
        "{b} found the {item} that {a} lost at the {place}.",
    ),
    "gift": (
        (
            "It was the birthday of {a} on {day}.",
            "On {day} {a} had a birthday.",
            "{a} turned ten on {day}.",
        ),
        (
            "{b} bought a {item} near the {place}.",
            "{b} came with a {item}.",
            "There was a {item} from {b} on the table.",
        ),
        ("They ate cake at the {place}.", "Everybody laughed.", "{a} loved it."),
        "{b} gave {a} a {item} on {day}.",
    ),
    "trip": (
        (
            "{a} and {b} took the train to the {place}.",
            "{a} wanted to see the {place} and {b} came along.",
            "On {day} {a} met {b} and they left for the {place}.",
        ),
        ("It began to rain.", "It was a warm day.", "They walked for hours."),
        (
            "In the end they bought a {item} there.",
            "They came back with a {item}.",
            "A man sold them a {item}.",
        ),
        "{a} and {b} went to the {place} and got a {item}.",
    ),
    "contest": (
        (
            "There was a contest at the {place} on {day}.",
            "On {day} the {place} held a contest.",
            "Many people came to the contest at the {place}.",
        ),
        ("{b} was fast.", "{b} tried hard.", "{b} had trained for a year."),
        (
            "But {a} was better and got a {item}.",
            "Still {a} came first. The prize was a {item}.",
            "{a} won a {item} in front of {b}.",
        ),
        "{a} beat {b} at the {place} and won a {item}.",
    ),
}
KINDS = tuple(STORIES)


@dataclass(frozen=True)
class Story:
    """A story of three to five sentences; `slots` hold a, b, item, place, day."""

    kind: str
    text: str
    slots: dict[str, str]
    summary: str


def make_story(rng: random.Random, *, held_out: bool = False) -> Story:
    """One story; `held_out` picks people that training never uses."""
    kind = rng.choice(KINDS)
    a, b = pick_people(rng, 2, held_out=held_out)
    slots = {
        "a": a,
        "b": b,
        "item": rng.choice(ITEMS),
        "place": rng.choice(PLACES),
        "day": rng.choice(DAYS),
    }
    *parts, summary = STORIES[kind]
    sentences = [rng.choice(part) for part in parts]
    for filler in ("The sun was out.", "It was late.", "A dog barked.", "Nobody said a word."):
        if rng.random() < 0.12:
            sentences.insert(rng.randrange(len(sentences) + 1), filler)
    text = " ".join(sentences).format(**slots)
    if not all(slots[slot] in text for slot in _slots_of(str(summary))):
        return make_story(rng, held_out=held_out)  # a wording that leaves out a fact: draw again
    return Story(kind, text, slots, str(summary).format(**slots))


def _slots_of(template: str) -> list[str]:
    return [slot for slot in ("a", "b", "item", "place", "day") if f"{{{slot}}}" in template]
