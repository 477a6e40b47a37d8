"""Made tasks with honest splits: chats, stories, tickets, a toy language.

Deterministic by seed; imports no torch and nothing of the training code.
"""

from polygraft.trainer.tasks.builtin import TASKS, make_task
from polygraft.trainer.tasks.slots import slot_accuracy
from polygraft.trainer.tasks.task import Task

__all__ = ["TASKS", "Task", "make_task", "slot_accuracy"]
