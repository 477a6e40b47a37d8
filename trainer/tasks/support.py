"""Chats of a customer with a shop: a summary as of friends' chats, and what the shop has to do.

The company's own round after a general one: the core of a chat, its wordings and its summary are
those of `dsum`; around it stand more lines that do not matter, and the action is new.
"""

import random
from dataclasses import dataclass

from polygraft.trainer.tasks.dialogues import Dialogue, make_dialogue
from polygraft.trainer.tasks.tickets import Split
from polygraft.trainer.tasks.words import DAYS, ITEMS

ACTIONS = {
    "meet": "book {place}, {day}, {time}",
    "decline": "close, {reason}",
    "move": "change {event} to {day}, {time}",
    "bring": "send {item} to {place}",
    "borrow": "lend {item} until {day}",
}
GREETINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Hello, this is {b} of the shop. What can I do for you?",
        "Good day, {b} here. How can I help?",
        "Thank you for waiting, {a}. I am {b}.",
    ),
    "validation": ("You speak with {b}. What is it about?",),
    "test": ("Welcome to the shop, {a}. My name is {b}.",),
}
HISTORIES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Hello {b}, I bought a {item} from you on {day}.",
        "I have been a customer for years.",
        "I called on {day} and nobody answered.",
        "The {item} is fine, it is about something else.",
    ),
    "validation": ("My {item} came on {day}, thank you.",),
    "test": ("On {day} I was in your shop for a {item}.", "Your shop is the best, {b}."),
}
CLOSINGS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("Is there anything else?", "No, that is all."),
        ("I have written it down.", "Thank you, {b}."),
        ("You will get a letter.", "Good. Goodbye!"),
    ),
    "validation": (("Can I do more for you, {a}?", "No, goodbye."),),
    "test": (("It is all in the book now.", "Thanks a lot!"),),
}


@dataclass(frozen=True)
class SupportChat:
    """A chat with its core facts and the action in words."""

    chat: Dialogue
    action: str

    @property
    def summary(self) -> str:
        """The summary and the action, the one answer that counts as an exact match."""
        return f"{self.chat.summary}\nAction: {self.action}."


def make_support_chat(rng: random.Random, *, split: Split, held_out: bool = False) -> SupportChat:
    """A chat of six to fourteen lines in the wordings of a split."""
    core = make_dialogue(rng, wordings=split, held_out=held_out)
    a, b = core.slots["a"], core.slots["b"]
    said = {"a": a, "b": b, "item": rng.choice(ITEMS), "day": rng.choice(DAYS)}
    histories = HISTORIES[split]
    chosen = rng.sample(histories, rng.randint(1, min(2, len(histories))))
    closing = rng.choice(CLOSINGS[split])
    lines = [
        (b, rng.choice(GREETINGS[split])),
        *((a, history) for history in chosen),
    ]
    ends = [(b, closing[0]), (a, closing[1])]
    chat = Dialogue(
        core.kind,
        (
            *((who, words.format(**said)) for who, words in lines),
            *core.lines,
            *((who, words.format(**said)) for who, words in ends),
        ),
        core.slots,
        core.wording,
    )
    return SupportChat(chat, ACTIONS[core.kind].format(**core.slots))
