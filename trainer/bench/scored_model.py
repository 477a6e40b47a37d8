"""What a benchmark asks of a model, in this process or on a server. Knows neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[int], None]
"""Told how many more requests have been answered."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A context and what may follow it, each of at least one token."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural log-probability of a continuation; greedy: nothing else would have been generated."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class Facts:
    """What identifies a model and what it takes."""

    target: str
    """As it was asked for."""
    base: str
    weights_sha256: str
    adapter: str | None
    """The version's digest, or what was named where it has none; None for the base alone."""
    has_chat_template: bool
    weights_bytes: int | None
    """None where only a server knows."""
    adapter_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        """For results."""
        return dict(vars(self))


class ScoredModel(Protocol):
    """A base, or an adapter on it."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        ...

    @property
    def window(self) -> int:
        """Tokens of text that fit, behind the virtual ones."""
        ...

    @property
    def bos(self) -> int:
        """What stands for an empty context: BOS, or EOS where the tokenizer has none."""
        ...

    def encode(self, texts: Sequence[str], *, bare: bool = False) -> list[list[int]]:
        """Token ids, with what the tokenizer adds in front (never twice) unless `bare`."""
        ...

    def score(self, pairs: Sequence[TokenPair], advance: Advance) -> list[Likelihood]:
        """In the order given; a pair has at most `window` tokens."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_output_tokens: int,
        stop: Sequence[str],
        advance: Advance,
    ) -> list[str]:
        """Greedy texts, cut before the first stop sequence."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation in the base's chat template, up to where the answer begins."""
        ...
