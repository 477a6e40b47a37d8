"""How the words of a command line become values: NAME=VALUE pairs, texts that may be files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from polygraft.commands.failure import CommandFailed, ExitCode


def assignment(option: str, text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"{option} {text} has no '='; write NAME=VALUE.", ExitCode.USAGE)
    return name, value


def adapters_of(references: Sequence[str]) -> dict[str, object]:
    """The options `adapter` or `adapters` for REFERENCE or several REFERENCE=WEIGHT."""
    if len(references) == 1 and "=" not in references[0]:
        return {"adapter": references[0]}
    weights: dict[str, float] = {}
    for text in references:
        name, _, weight = text.partition("=")
        if name in weights:
            raise CommandFailed(f"--adapter {name} is given twice.", ExitCode.USAGE)
        weights[name] = _number("--adapter", weight) if weight else 1.0
    return {"adapters": weights} if weights else {}


def logit_bias_of(pairs: Sequence[str]) -> dict[int, float]:
    """Token ids with what is added to their logits, from ID=VALUE."""
    bias: dict[int, float] = {}
    for pair in pairs:
        name, value = assignment("--logit-bias", pair)
        bias[_token_id("--logit-bias", name)] = _number("--logit-bias", value)
    return bias


def token_ids_of(text: str) -> list[int]:
    """Token ids with commas or spaces between them."""
    return [_token_id("--token-ids", word) for word in text.replace(",", " ").split()]


def text_or_file(text: str) -> str:
    """The content of a file if there is one of this name, else the text itself."""
    try:
        is_file = "\n" not in text and Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, for example
        is_file = False
    if not is_file and text.startswith(("/", "./", "../")):
        raise CommandFailed(f"there is no file {text}.", ExitCode.USAGE)
    return Path(text).read_text(encoding="utf-8") if is_file else text


def _number(option: str, text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CommandFailed(f"{option}: {text!r} is not a number.", ExitCode.USAGE)
    return value


def _token_id(option: str, text: str) -> int:
    """A number that can be a token's id."""
    if not text.isdecimal():
        raise CommandFailed(f"{option}: {text!r} is not a token id.", ExitCode.USAGE)
    return int(text)
