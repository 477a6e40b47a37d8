"""Customer tickets for four teams, in wordings that differ between train, validation and test."""

import random
from typing import Literal

from polygraft.trainer.tasks.words import DAYS, ITEMS, pick_people

Split = Literal["train", "validation", "test"]
TEAMS = ("billing", "shipping", "returns", "technical")

COMPLAINTS: dict[str, dict[Split, tuple[str, ...]]] = {
    "billing": {
        "train": (
            "I was charged twice for the {item}.",
            "The price on my bill is wrong.",
            "You took money from my card on {day}.",
            "My card was charged but I bought nothing.",
            "The bill for the {item} is too high.",
            "I paid for the {item} two times.",
        ),
        "validation": ("My bill shows a {item} that I never bought.",),
        "test": ("Why is there a second charge for the {item} on my card?", "The bill is wrong."),
    },
    "shipping": {
        "train": (
            "My {item} has not arrived yet.",
            "The parcel with the {item} was due on {day}.",
            "Where is my {item}? I have waited since {day}.",
            "The driver left the {item} at the wrong house.",
            "When will the {item} be delivered?",
            "The parcel is still on its way.",
        ),
        "validation": ("No parcel came on {day}. Where is the {item}?",),
        "test": ("I am still waiting for the parcel.", "The {item} should have arrived on {day}."),
    },
    "returns": {
        "train": (
            "I want to send the {item} back.",
            "The {item} does not fit, I would like another one.",
            "How can I return the {item}?",
            "Please take the {item} back, I do not like it.",
            "I changed my mind about the {item}. Can I send it back?",
            "The {item} has the wrong colour and I want to swap it.",
        ),
        "validation": ("Can I swap the {item}? I do not like it.",),
        "test": ("I do not like the {item}. Can you take it back?", "I want to return it."),
    },
    "technical": {
        "train": (
            "The {item} does not turn on.",
            "The app stops when I open it.",
            "I cannot log in since {day}.",
            "The screen of the {item} stays black.",
            "My password does not work.",
            "The {item} is broken, it makes a noise.",
        ),
        "validation": ("Since {day} the app does not open.",),
        "test": ("The {item} does not work, the screen is black.", "I cannot open the app."),
    },
}
FILLERS = (
    "Hello,",
    "Please help.",
    "This is {name}.",
    "I bought a {item} on {day}.",
    "Thank you.",
    "I have been a customer for years.",
    "It was a present for {name}.",
    "Please answer before {day}.",
    "The {item} is very nice.",
)


def make_ticket(rng: random.Random, *, split: Split, held_out: bool = False) -> tuple[str, str]:
    """A ticket text in the wordings of a split, and the team that it belongs to."""
    team = rng.choice(TEAMS)
    (name,) = pick_people(rng, 1, held_out=held_out)
    sentences = rng.sample(FILLERS, rng.choice((0, 1, 2, 3)))
    complaint = rng.choice(COMPLAINTS[team][split])
    sentences.insert(rng.randrange(len(sentences) + 1), complaint)
    slots = {"name": name, "day": rng.choice(DAYS)}
    text = " ".join(s.format(item=rng.choice(ITEMS), **slots) for s in sentences)
    return text, team
