"""What is new in a test row, apart: people, wordings, both. For the tasks that are about chats.

The test split of these tasks holds new people in new wordings at once, which does not tell what an
adapter stumbles over. These rows do; none of them stands in a train split of the same seed.
"""

import random
from collections.abc import Callable

from polygraft.trainer.tasks.builtin import make_task
from polygraft.trainer.tasks.dialogues import Dialogue, Wordings, make_dialogue
from polygraft.trainer.tasks.task import Row

AXES: dict[str, tuple[Wordings, bool]] = {
    # axis: (wordings, people that no train row has)
    "nothing new": ("train", False),
    "new people": ("train", True),
    "new wordings": ("test", False),
    "new people and wordings": ("test", True),
    "and wordings new to the base": ("unseen", True),
}
ROWS = 60
ANSWERS: dict[str, Callable[[Dialogue], str]] = {
    "dsum": lambda chat: chat.summary,
    "names": lambda chat: ", ".join(chat.speakers),
    "duty": lambda chat: f"{chat.slots['day']}: {chat.slots['b']}",
}


def make_axis(task: str, axis: str, *, rows: int = ROWS, seed: int = 0) -> list[Row]:
    """Rows of one axis. KeyError for a task that offers none, or an unknown axis."""
    wordings, held_out = AXES[axis]
    answer = ANSWERS[task]
    random_ = random.Random(f"{task}/axis/{axis}/{seed}")
    known = {row["variables"]["dialogue"] for row in make_task(task).splits["train"]}
    made: list[Row] = []
    while len(made) < rows:
        chat = make_dialogue(random_, wordings=wordings, held_out=held_out)
        if chat.text not in known:
            known.add(chat.text)
            made.append(
                {
                    "id": f"{task}-{axis.replace(' ', '-')}-{len(made)}",
                    "group": chat.wording,
                    "variables": {"dialogue": chat.text},
                    "completion": answer(chat),
                }
            )
    return made
