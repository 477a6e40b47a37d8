"""Failpoints: what each action does, when, and that code and list of names agree."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polygraft.adapters.failpoints import FAILPOINTS, activate, failpoint, is_active

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _inactive_afterwards() -> Iterator[None]:
    yield
    activate(None)


def test_nothing_happens_without_rules() -> None:
    assert not is_active()
    failpoint("store.link")


@pytest.mark.parametrize(("action", "code"), [("error", errno.EIO), ("enospc", errno.ENOSPC)])
def test_an_error_is_raised_at_the_hit_that_was_named(action: str, code: int) -> None:
    active = activate(f"store.link={action}@2, store.write={action}")
    failpoint("store.link")
    failpoint("store.open")
    for name in ("store.link", "store.write", "store.write"):
        with pytest.raises(OSError, match=re.escape(name)) as caught:
            failpoint(name)
        assert caught.value.errno == code
    failpoint("store.link")
    assert active is not None
    assert active.hits["store.link"] == 3


def test_a_delay_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    activate("store.link=delay:20")
    failpoint("store.link")
    assert slept == [0.02]


@pytest.mark.parametrize(
    "text",
    ["store.link", "store.lnk=kill", "store.link=die", "store.link=delay", "store.link=kill@x"],
)
def test_a_rule_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="POLYGRAFT_FAILPOINTS"):
        activate(text)


def test_the_variable_kills_a_process_as_kill_9_does() -> None:
    code = (
        "from polygraft.adapters.failpoints import failpoint\n"
        "for n in range(5): print(n, flush=True); failpoint('store.link')"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"POLYGRAFT_FAILPOINTS": "store.link=kill@3", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout.split()) == (-9, ["0", "1", "2"])


def test_every_name_is_passed_somewhere_and_every_call_has_a_name_that_is_listed() -> None:
    called = {
        name
        for folder in ("adapters", "server")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'\bfailpoint\("([^"]+)"\)', path.read_text())
        if path.name != "failpoints.py"
    }
    assert called == set(FAILPOINTS)
