"""Where versions are and go: on the device by hand, into files and directories of the caller."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_support.service import Service, service_in_thread
from typer.testing import CliRunner, Result

from polygraft.cli import app
from polygraft.commands.failure import ExitCode


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with service_in_thread(tmp_path / "store") as running:
        monkeypatch.setenv("POLYGRAFT_SERVER", running.address)
        yield running


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_place_that_cannot_be_written_is_one_sentence(service: Service, tmp_path: Path) -> None:
    service.publish("dsum", tmp_path / "a")
    for arguments in (("export", "dsum", "/proc/nope/x.tar"), ("download", "dsum", "/proc/nope/x")):
        refused = run("adapters", *arguments)
        assert refused.exit_code == ExitCode.USAGE
        assert re.fullmatch(r"error: /proc/nope\S*: No such file or directory\.\n", refused.stderr)


def test_a_version_is_loaded_pinned_and_unloaded(service: Service, tmp_path: Path) -> None:
    version = service.publish("dsum", tmp_path / "a")
    residency = service.server.residency
    shown = run("adapters", "load", "dsum", "--pin")
    assert (shown.exit_code, shown.stdout) == (0, f"dsum@1  {version.digest}  device, pinned\n")
    assert [entry.pinned for entry in residency.snapshot()] == [True]
    assert run("adapters", "delete", "dsum", "--yes").exit_code == ExitCode.REFUSED
    shown = run("adapters", "unload", "dsum@live", "--json")
    assert json.loads(shown.stdout)["tier"] == "store"
    assert residency.snapshot() == []
    assert run("adapters", "load", "nope").exit_code == ExitCode.USAGE
