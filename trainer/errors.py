"""What can go wrong in the trainer, each with the exit status of the command that meets it.

PolygraftError
└── TrainerError        1
    ├── RecipeError     2    the recipe or the command line is wrong; nothing was read or written
    ├── DataError       3    the rows cannot be trained or scored on
    ├── TrainingFailed  4    non-finite, diverged or unmoved weights; nothing was saved
    └── Interrupted     130  Ctrl-C; the state reached is saved
"""

from __future__ import annotations

from typing import ClassVar

from polygraft.adapters.errors import PolygraftError


class TrainerError(PolygraftError):
    """Base of the trainer's own errors."""

    reason = "TRAINER"
    exit_code: ClassVar[int] = 1


class RecipeError(TrainerError):
    """A key or value of the recipe is unknown, out of range or contradictory."""

    reason = "INVALID_RECIPE"
    exit_code = 2


class DataError(TrainerError):
    """A file, a line or a field of the data cannot be used. `file` and `item` say where."""

    reason = "INVALID_DATA"
    exit_code = 3


class TrainingFailed(TrainerError):
    """The run produced nothing worth keeping, so nothing was kept."""

    reason = "TRAINING_FAILED"
    exit_code = 4


class Interrupted(TrainerError):
    """The user pressed Ctrl-C; the message says where the state lies."""

    reason = "INTERRUPTED"
    exit_code = 130
