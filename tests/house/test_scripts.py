"""The set-up and check scripts say clearly what is wrong: run in a copy, with stub tools."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from house.checkout import ROOT

SYSTEM_TOOLS = ("bash", "dirname", "grep", "touch", "env", "cat")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of `scripts/` and constraints.txt, and `bin/` with a few system tools only."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    (tmp_path / "bin").mkdir()
    for name in SYSTEM_TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def put_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def run_script(checkout: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, "PATH": str(checkout / "bin")}
    script = str(checkout / "scripts" / command[0])
    return subprocess.run(
        [script, *command[1:]], env=variables, capture_output=True, text=True, timeout=60
    )


def test_install_names_the_python_it_found_when_that_is_too_old(checkout: Path) -> None:
    put_program(checkout / "bin" / "python3", '[ "$1" = --version ] && echo Python 3.9.2')
    result = run_script(checkout, "install", "base")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "Python 3.9.2" in result.stderr


def test_install_says_so_when_there_is_no_python_at_all(checkout: Path) -> None:
    result = run_script(checkout, "install", "base")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_install_names_the_package_to_install_when_venv_is_missing(checkout: Path) -> None:
    old_enough = (
        'case "$*" in *version_info*) exit 0;; --version) echo Python 3.11.2;; *) exit 1;; esac'
    )
    put_program(checkout / "bin" / "python3.11", old_enough)
    result = run_script(checkout, "install", "base")
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr


def test_install_prefers_python_3_11_and_installs_torch_first_by_its_exact_version(
    checkout: Path,
) -> None:
    log = checkout / "log"
    program = f"""
        echo "$*" >>{log}
        case "$*" in
        --version) echo Python 3.11.2 ;;
        *'venv --clear .venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
        esac"""
    put_program(checkout / "bin" / "python3.11", program)
    for name in ("mkdir", "cp"):
        (checkout / "bin" / name).symlink_to(shutil.which(name) or name)
    result = run_script(checkout, "install", "dev")
    assert result.returncode == 0, result.stderr
    installs = [line for line in log.read_text().splitlines() if " pip install " in line]
    assert all("--constraint constraints.txt" in line for line in installs)
    assert installs[0].endswith(" torch==2.13.0")
    assert installs[-1].endswith(" --no-build-isolation --editable .[dev]")
    assert (checkout / ".venv" / ".installed-base").exists()
    assert (checkout / ".venv" / ".installed-dev").exists()


def test_install_refuses_an_unknown_set_of_dependencies(checkout: Path) -> None:
    result = run_script(checkout, "install", "everything")
    assert result.returncode == 1
    assert "usage: scripts/install base|dev" in result.stderr


def test_check_runs_everything_and_names_what_failed(checkout: Path) -> None:
    for name in ("ruff", "lint-imports", "buf", "python"):
        put_program(checkout / ".venv" / "bin" / name, "exit 0")
    put_program(checkout / ".venv" / "bin" / "mypy", "echo a.py:1: error: wrong; exit 1")
    put_program(checkout / "scripts" / "generate-protos", "exit 0")
    result = run_script(checkout, "check")
    assert result.returncode == 1
    assert "ok    format" in result.stdout
    assert "a.py:1: error: wrong" in result.stdout
    assert "ok    protos-drift" in result.stdout
    assert "2 failed: types types-benchmarks" in result.stderr


def test_promtool_is_not_fetched_where_there_is_one(checkout: Path) -> None:
    put_program(checkout / "bin" / "promtool", "exit 0")
    result = run_script(checkout, "fetch-promtool")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_apt_the_missing_promtool_is_only_told(checkout: Path) -> None:
    result = run_script(checkout, "fetch-promtool")
    assert result.returncode == 0
    assert "promtool is absent" in result.stderr
