"""Slot accuracy: does a summary state the right facts, whatever its wording?"""

import re

from polygraft.trainer.tasks.task import Row


def slot_accuracy(prediction: str, row: Row) -> float:
    """The share of the row's facts (who, what, where, when) that the prediction states, 0 to 1.

    A fact counts when its value occurs as whole words: "10 pm" does not state "1 0 pm" or "0 pm".

    Raises:
        KeyError: the row carries no `slots`, that is, it is not a row of `dsum`.
    """
    facts = row["slots"].values()
    return sum(_states(prediction, value) for value in facts) / len(facts)


def _states(prediction: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", prediction) is not None
