"""`benchmarks/serving.py --preset smoke` measures every system and writes one line per row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.systems import SYSTEMS
from house.checkout import ROOT

SERVING = ROOT / "benchmarks" / "serving.py"


def run_serving(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SERVING), "--threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_smoke_preset_measures_every_system_with_equal_outputs(tmp_path: Path) -> None:
    result = run_serving("--preset", "smoke", "--json", tmp_path / "rows.jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == [*SYSTEMS] * 2
    assert {row["same_output"] for row in rows} == {1.0}
    assert all(row["tokens_per_s"] > 0 and row["rss_mib"] > 0 for row in rows)
    assert "tokens/s" in result.stdout


def test_an_unknown_system_is_refused_by_name() -> None:
    result = run_serving("--systems", "peft,vllm")
    assert result.returncode == 2
    assert "'vllm' is none of" in result.stderr
