"""A server process is waited for, fails with its log, and leaves no descendant."""

import sys
import time
from pathlib import Path

import psutil
import pytest
from benchmarks.server_process import ServerFailed, ServerProcess

PARENT = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
child.wait()
"""


def test_a_process_that_ends_too_early_fails_with_what_it_printed() -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with ServerProcess(command) as server, pytest.raises(ServerFailed, match="exit code 3") as told:
        server.wait_until(lambda: False, timeout=60)
    assert "no such model" in str(told.value)


def test_one_that_does_not_answer_in_time_fails() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with ServerProcess(command) as server, pytest.raises(ServerFailed, match="no answer"):
        server.wait_until(lambda: False, timeout=0)


def test_environment_variables_are_added(tmp_path: Path) -> None:
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['GIVEN'])"
    made = tmp_path / "made"
    with ServerProcess(
        [sys.executable, "-c", code, str(made)], environment={"GIVEN": "x"}
    ) as server:
        with pytest.raises(ServerFailed):
            server.wait_until(lambda: False, timeout=60)
        assert made.read_text() == "x"


def test_closing_ends_descendants_too(tmp_path: Path) -> None:
    note = tmp_path / "child"
    with ServerProcess([sys.executable, "-c", PARENT, str(note)]) as server:
        server.wait_until(lambda: note.exists() and note.read_text() != "", timeout=60)
        child = psutil.Process(int(note.read_text()))
        assert child.pid in server.process_ids()
    assert ends(child)


def ends(process: psutil.Process) -> bool:
    """Whether it is gone within a minute; one that nobody has waited for yet counts as gone."""
    for _ in range(600):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False
