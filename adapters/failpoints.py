"""Places where a test may kill, fail or delay the process: `failpoint("store.link")`.

Nothing happens unless POLYGRAFT_FAILPOINTS is set when the process starts, for example to
`store.link=kill@3,publish.manifest=delay:20`: name, action, and after "@" the one hit that acts
(without it, every one). Actions: `kill` (as kill -9), `error` (EIO), `enospc`, `delay:<ms>`.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

VARIABLE = "POLYGRAFT_FAILPOINTS"
# In the order in which a publish that moves an alias meets them; a name comes with its call.
FAILPOINTS = (
    "upload.open",
    "upload.chunk",
    "upload.validate",
    "publish.files",
    "store.open",
    "store.write",
    "store.fsync_file",
    "store.link",
    "store.fsync_directory",
    "publish.manifest",
    "publish.version",
    "alias.record",
    "alias.reply",
    "publish.reply",
    "upload.reply",
    "store.delete",
    "garbage.delete",
)
_RULE = re.compile(
    r"(?P<name>[a-z_.]+)=(?P<action>kill|error|enospc|delay:(?P<ms>\d{1,6}))(@(?P<hit>\d{1,6}))?"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one failpoint does; `hit` None: at every hit. `delay` in seconds."""

    action: str
    delay: float
    hit: int | None


class Failpoints:
    """The rules in force and how often each point was passed. Thread-safe."""

    def __init__(self, text: str = "") -> None:
        self.rules = _parse(text)
        self.hits: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        """Counts, and does what the rule of `name` says."""
        with self._lock:
            self.hits[name] += 1
            count = self.hits[name]
        rule = self.rules.get(name)
        if rule is not None and rule.hit in (None, count):
            _act(rule, name)


def failpoint(name: str) -> None:
    """Passes a failpoint; does nothing but look at one variable when none is set."""
    if _active is not None:
        _active.hit(name)


def activate(text: str | None) -> Failpoints | None:
    """Puts these rules in force in place of all others; None ends them. Returns what is in force.

    ValueError for a rule that cannot be read or names no failpoint.
    """
    global _active
    _active = None if text is None else Failpoints(text)
    return _active


def is_active() -> bool:
    """Whether any rule is in force: never so in production, and a server says so at its start."""
    return _active is not None


def _parse(text: str) -> dict[str, Rule]:
    return dict(_parse_rule(part.strip()) for part in _parts(text))


def _parts(text: str) -> Iterable[str]:
    return (part for part in text.split(",") if part.strip())


def _parse_rule(text: str) -> tuple[str, Rule]:
    match = _RULE.fullmatch(text)
    if match is None or match["name"] not in FAILPOINTS:
        raise ValueError(
            f"{VARIABLE}: {text!r} is not <name>=kill|error|enospc|delay:<ms>[@<hit>] with one of "
            f"the names {', '.join(FAILPOINTS)}"
        )
    hit = int(match["hit"]) if match["hit"] else None
    return match["name"], Rule(match["action"].partition(":")[0], int(match["ms"] or 0) / 1000, hit)


def _act(rule: Rule, name: str) -> None:
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.action == "delay":
        time.sleep(rule.delay)
    elif rule.action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    else:
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)


_active: Failpoints | None = Failpoints(os.environ[VARIABLE]) if VARIABLE in os.environ else None
