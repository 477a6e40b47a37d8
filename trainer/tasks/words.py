"""Word lists that the tasks and the pre-training corpus share, and the pool of people.

A person is held out when the hash of the name says so: held-out people never occur in the
corpus nor in a train split, so a score on them measures copying, not memory.
"""

import hashlib
import random


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, for lists that read better as text."""
    return tuple(text.split())


LISTED = word_list(
    "Ada Alma Amir Anna Aron Bela Ben Cara Carl Chen Cleo Dana Dina Edda Elif Emil Enzo Eva Fay "
    "Finn Gita Gus Hana Hugo Ida Igor Ines Iris Ivan Jana Joel Juno Kai Kira Lars Lena Leo Lina "
    "Luca Mara Max Maya Milo Nadia Nils Nora Olaf Omar Otto Pia Raj Rosa Ruth Sami Sara Tara Theo "
    "Tom Uma Vera Wim Yara Zeno Zoe"
)
PLACES = word_list(
    "park library station museum cafe lake market school harbour theatre gym beach bakery office "
    "garden bridge pool zoo airport stadium church castle"
)
DAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = [f"{hour} {half}" for half in ("am", "pm") for hour in range(1, 12)]
ITEMS = word_list(
    "tent guitar ladder camera drill map lamp book ball kite rope cake blanket bike radio chair "
    "basket helmet parasol puzzle kettle hammer"
)
ACTIVITIES = (
    "swim",
    "play chess",
    "have lunch",
    "study",
    "watch a film",
    "go running",
    "paint",
    "play tennis",
    "sing",
    "drink tea",
    "practise",
    "take photos",
    "dance",
    "go cycling",
    "draw",
    "cook",
)
EVENTS = word_list("meeting lesson rehearsal dinner game interview party trip")
REASONS = {  # third person: first person
    "is ill": "I am ill",
    "has to work": "I have to work",
    "has a test": "I have a test",
    "is away": "I am away",
    "has guests": "I have guests",
    "is too tired": "I am too tired",
    "has no money": "I have no money",
    "hurt a foot": "I hurt a foot",
    "must see a doctor": "I must see a doctor",
    "has no car": "I have no car",
}

_ONSETS = word_list("b br ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z")
_VOWELS = word_list("a e i o u a e i o ai ea ou")
_CODAS = ["", "", "", "n", "l", "r", "s", "m", "k", "x", "nd"]


def made_name(rng: random.Random) -> str:
    """A pronounceable name of two or three syllables, out of several million."""
    syllables = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((2, 2, 3)))
    ]
    return "".join(syllables).capitalize()


def is_held_out(name: str) -> bool:
    """True for the one name in six that neither corpus nor train split may use."""
    return hashlib.sha256(name.encode()).digest()[0] % 6 == 0


def pick_people(rng: random.Random, count: int, *, held_out: bool = False) -> list[str]:
    """`count` different people, all of them held out or none; 35 % come from the list."""
    people: list[str] = []
    while len(people) < count:
        name = rng.choice(LISTED) if rng.random() < 0.35 else made_name(rng)
        if name not in people and is_held_out(name) == held_out:
            people.append(name)
    return people
