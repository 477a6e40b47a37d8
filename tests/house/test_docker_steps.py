"""The image's steps work without Docker, and the Dockerfile keeps what it promises."""

import os
import re
import site
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from house.checkout import PACKAGE_FOLDERS, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE.split("\nFROM ")[-1]


def test_the_final_stage_runs_as_an_ordinary_user_and_starts_the_program() -> None:
    assert DOCKERFILE.count("\nFROM ") == 2
    assert re.search(r"^USER polygraft$", FINAL_STAGE, re.MULTILINE)
    assert 'ENTRYPOINT ["polygraft"]' in FINAL_STAGE
    assert "PYTHONSAFEPATH=1" in FINAL_STAGE
    assert re.search(r'HEALTHCHECK .*\\\n\s*CMD \["polygraft", "health"', FINAL_STAGE)


def test_the_image_listens_beyond_the_container_by_an_explicit_flag_only() -> None:
    (command,) = re.findall(r"^CMD (\[.*?\])$", FINAL_STAGE, re.MULTILINE | re.DOTALL)
    assert '"--host", "0.0.0.0"' in command
    assert '"--set", "metrics_host=0.0.0.0"' in command
    uncommented = re.sub(r"^#.*$", "", DOCKERFILE, flags=re.MULTILINE)
    assert uncommented.count("0.0.0.0") == command.count("0.0.0.0")


@pytest.mark.parametrize(
    "name",
    [
        *PACKAGE_FOLDERS,
        "src",
        "scripts",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    ],
)
def test_the_build_context_keeps_what_the_install_needs(name: str) -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [line for line in patterns if line and not line.startswith("#")]
    assert not any(fnmatch(name, pattern) for pattern in ignored)


@pytest.mark.slow
def test_the_steps_of_the_image_install_and_serve(tmp_path: Path) -> None:
    prefix = tmp_path / "opt" / "polygraft"
    prefix.parent.mkdir()
    steps = ROOT / "scripts" / "docker"
    environment = {**os.environ, "PYTHON": sys.executable, "HOME": str(tmp_path)}
    commands: list[list[str | Path]] = [
        [steps / "install.sh", prefix, *site.getsitepackages()],
        [steps / "smoke.sh", prefix],
    ]
    for command in commands:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("smoke: ok\n")
