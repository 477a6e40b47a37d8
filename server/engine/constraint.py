"""Constraints on what may be generated, as the engine sees them. Knows no text and no grammar.

`server.constraints` makes a `CompiledConstraint` from a `Constraint` before a request is submitted;
the engine starts one `ConstraintState` per sequence and asks it which tokens may come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt


class ConstraintKind(Enum):
    """The language that a constraint is written in."""

    JSON_SCHEMA = "json_schema"  # JSON text that is valid under the schema
    REGEX = "regex"  # the whole text matches; no anchors needed
    CHOICE = "choice"  # one of several texts, given as a JSON array of strings
    GRAMMAR = "grammar"  # a context-free grammar in Lark's notation, from its rule `start`


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must be; `text` is in the language of `kind`."""

    kind: ConstraintKind
    text: str


class ConstraintState(Protocol):
    """How far one sequence has come in its constraint. Used by the engine thread only."""

    @property
    def is_accepting(self) -> bool:
        """Whether the output so far satisfies the constraint, so that it may end here."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow: the output satisfies the constraint and must end here."""
        ...

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocab_size]: the tokens that may come next. End-of-sequence tokens are not judged."""
        ...

    def advance(self, token_id: int) -> None:
        """Take note of a token that `allowed` permitted."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that are most likely next because the constraint leaves no other text; a guess."""
        ...

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may come next, one after the other."""
        ...


class CompiledConstraint(Protocol):
    """A constraint that was checked. Immutable; may be shared by any number of sequences."""

    def start(self) -> ConstraintState:
        """The state before the first output token."""
        ...
