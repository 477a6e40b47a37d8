"""The demonstration from end to end, as `make demo` runs it, and what it must show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = "import sys; from polygraft.cli import main; sys.argv[0] = 'polygraft'; main()"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", DEMO, "demo", "--keep", "--json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)

    scores = measured["scores"]
    base, hasty, full = scores["base, dsum"], scores["dsum@1"], scores["dsum@2"]
    assert base["rougeL"] <= 40
    assert full["rougeL"] >= 80
    assert full["rougeL"] > hasty["rougeL"] + 10
    names = scores["names@1"]["exact_match"]
    assert names >= 90
    assert names - scores["base, names"]["exact_match"] >= 35

    assert measured["names_in_known_wording"] >= 90

    assert measured["mixed_load"]["failed"] == 0
    swap = measured["swap"]
    assert swap["failed"] == 0
    assert set(swap["by_version"]) == {"1", "2"}
    assert swap["same_as_alone"] == swap["answers"] == sum(swap["by_version"].values())
    assert measured["server_exit_code"] == 0

    runs = sorted((tmp_path / "demo-out" / "runs").iterdir())
    assert len(runs) == 3
    assert all((run / "loss.png").stat().st_size > 10_000 for run in runs)
    assert "stopped" in (tmp_path / "demo-out" / "server.log").read_text()
