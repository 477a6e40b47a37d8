"""Questions changed in ways that leave their answers as they are. Deterministic by the text.

After HELM's perturbations (Liang et al. 2022, arXiv:2211.09110): case, typing errors and white
space for robustness, exchanged names for fairness.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polygraft.trainer.bench.mini import exchange
from polygraft.trainer.rows import Row
from polygraft.trainer.tasks.words import LISTED, word_list

TYPO_RATE = 0.15
"""Share of the words of at least four letters in which two neighbouring letters change places."""

COMMON = word_list(
    "James Mary John Patricia Robert Jennifer Michael Linda William Elizabeth David Barbara "
    "Richard Susan Joseph Jessica Thomas Sarah Charles Karen Emily Daniel Anna Peter Paul George "
    "Alice Laura Kate Bob Jane Harry Emma Lucy Anne Henry Sam"
)
RARE = word_list(
    "Adaeze Bilal Chidi Dilnoza Efua Farrukh Gulnara Hadiza Ikenna Jamshid Kwabena Lerato Mbali "
    "Nizoramo Oluwaseun Parvaneh Qurban Rukhsana Sithole Thandiwe Ugochi Vusumuzi Wanjiru Xolani "
    "Yetunde Zainab Akosua Babajide Chukwuemeka Dzifa"
)
_NAMES = re.compile(rf"\b({'|'.join(sorted({*LISTED, *COMMON}, key=len, reverse=True))})\b")


def lower_case(text: str) -> str:
    """Small letters only."""
    return text.lower()


def typing_errors(text: str) -> str:
    """Neighbouring inner letters of some words change places."""
    rng = random.Random(text)

    def changed(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= TYPO_RATE:
            return word
        at = rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[^\W\d_]{4,}", changed, text)


def white_space(text: str) -> str:
    """One to three blanks wherever there was one."""
    rng = random.Random(text)
    return re.sub(" ", lambda _: " " * rng.randint(1, 3), text)


ROBUSTNESS: Mapping[str, Callable[[str], str]] = {
    "case": lower_case,
    "typos": typing_errors,
    "white space": white_space,
}


def perturb(row: Row, fields: Sequence[str], change: Callable[[str], str]) -> Row:
    """The row with some of its texts changed."""
    return {name: change(value) if name in fields else value for name, value in row.items()}


def swap_names(row: Row) -> Row | None:
    """The row with every common first name exchanged for a rare one, in all its texts; None if it
    has no such name."""
    text = repr(row)
    found = list(dict.fromkeys(_NAMES.findall(" ".join(_texts(row)))))
    if not found:
        return None
    others = [name for name in RARE if name not in text]
    if len(found) > len(others):
        return None
    names = dict(zip(found, random.Random(text).sample(others, len(found)), strict=True))
    return {name: _exchanged(value, names) for name, value in row.items()}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


def _exchanged(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return exchange(value, names)
    return [_exchanged(part, names) for part in value] if isinstance(value, list) else value
