"""`polygraft adapters check`: the same verdicts as an upload, one line per problem, no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_support.directories import lora_config, lora_tensors, write_adapter
from tiny_models import save_base, tiny_llama
from typer.testing import CliRunner, Result

from polygraft.cli import app
from polygraft.commands.failure import ExitCode


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama())


def check(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["adapters", "check", str(directory), *arguments])


def fitting() -> dict[str, torch.Tensor]:
    """For q_proj of the tiny Llama."""
    (a, b) = lora_tensors()
    return {a: torch.ones(2, 64), b: torch.ones(64, 2)}


def test_a_good_adapter_is_described(base: Path, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", tensors=fitting())
    result = check(directory, "--model", str(base))
    assert result.exit_code == 0, result.output
    for fact in ("lora", "2 at most", "q_proj", "UNVERIFIED", "error of the update of"):
        assert fact in result.stdout
    assert "UNPROVEN" in result.stderr  # it was run, but brings no probes
    shown = check(directory, "--model", str(base), "--json")
    found = json.loads(shown.stdout)
    assert (found["accepted"], found["max_rank"], found["num_tensors"]) == (True, 2, 2)
    sizes = [file.stat().st_size for file in directory.iterdir()]
    assert found["num_bytes"] == sum(sizes)


def test_each_problem_is_a_line(base: Path, tmp_path: Path) -> None:
    tensors = fitting() | lora_tensors(module="model.layers.9.self_attn.q_proj")
    tensors |= lora_tensors(module="model.layers.0.mlp.router")
    directory = write_adapter(tmp_path / "adapter", tensors=tensors)
    result = check(directory, "--model", str(base))
    assert result.exit_code == ExitCode.REFUSED
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("has no linear module of this name" in line for line in lines)
    assert "2 problem(s)" in result.stderr
    found = json.loads(check(directory, "--model", str(base), "--json").stdout)
    assert found == {"accepted": False, "problems": lines}


def test_without_a_base_the_config_and_the_header_are_checked(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good")
    result = check(good)
    assert result.exit_code == 0
    assert "were not checked" in result.stderr
    bad = write_adapter(tmp_path / "bad", lora_config(use_qalora=True, layer_replication=[[0, 1]]))
    result = check(bad)
    assert result.exit_code == ExitCode.REFUSED
    assert sorted(line.split(": ")[1] for line in result.stdout.splitlines()) == [
        "layer_replication",
        "use_qalora",
    ]


def test_the_limits_are_those_of_the_server(tmp_path: Path, base: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", tensors=fitting())
    limits = tmp_path / "server.yaml"
    limits.write_text("adapters: {max_rank: 1}\nengine: {pool_rows: 16}\n")
    result = check(directory, "--model", str(base), "--config", str(limits))
    assert result.exit_code == ExitCode.REFUSED
    assert "rank 2 is more than the limit of 1" in result.stdout


def test_an_adapter_without_a_manifest_may_be_refused(tmp_path: Path, base: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", tensors=fitting())
    result = check(directory, "--model", str(base), "--require-verified")
    assert result.exit_code == ExitCode.REFUSED
    assert "does not declare the base" in result.stdout


def test_what_is_no_directory_is_a_wrong_argument(tmp_path: Path) -> None:
    assert check(tmp_path / "none").exit_code == ExitCode.USAGE
