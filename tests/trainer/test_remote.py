"""Scoring through a running server gives what scoring in this process gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.client import Client
from polygraft.trainer.config import RunConfig
from polygraft.trainer.demo.server_process import ServerProcess
from polygraft.trainer.run import train


def score(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def icl(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["icl", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def answers(output: str) -> list[Any]:
    """What was shown and how well it was answered, without names and times."""
    record = json.loads(output)
    return [
        (one["shots"], one["prompt_tokens"], one["window"], one["mean"], one["draws"][0]["scores"])
        for one in record["shots"] + record["beside"]
    ]


def test_server_and_local_answers_score_the_same(
    make_config: Callable[..., RunConfig], tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    run = train(make_config(), score_test=False)
    # A copy elsewhere: inside its run, an adapter is found with the manifest one folder up.
    bare_files = shutil.copytree(run.directory / "adapter", tmp_path / "bare")
    log, store = tmp_path / "log", tmp_path / "store"
    with ServerProcess(base=str(tiny_base), store=store, log=log, threads=1) as server:
        address = server.wait_ready(120).grpc
        with Client(address) as client:
            digest = client.upload_adapter(run.directory, "toy").version.digest
            client.upload_adapter(bare_files, "toy", alias="bare", allow_unverified_base=True)
        remote = score("toy@live", "--data", toy_file, "--server", address, "--json")
        bare = score("toy@bare", "--data", toy_file, "--server", address, "--json")
        asked = ("--data", toy_file, "--shots", "0,2", "--draws", "1", "--rows", "6", "--json")
        shots = icl("base", *asked, "--server", address, "--beside", "toy@live")
        missing = score("tou", "--data", toy_file, "--server", address)
    local = score(run.directory, "--data", toy_file, "--base", tiny_base, "--json")
    assert (remote[0], local[0]) == (0, 0)
    assert json.loads(remote[1]) == json.loads(local[1])
    assert json.loads(remote[1])["digest"] == digest
    bare_local = score(bare_files, "--data", toy_file, "--base", tiny_base, "--json")
    assert json.loads(bare[1])["subjects"] == json.loads(bare_local[1])["subjects"]
    assert json.loads(bare_local[1])["digest"] is None
    local_shots = icl(tiny_base, *asked, "--beside", run.directory, "--base", tiny_base)
    assert (shots[0], local_shots[0]) == (0, 0), shots[2] + local_shots[2]
    assert answers(shots[1]) == answers(local_shots[1])
    assert missing[0] == 2
    assert "toy" in missing[2]  # names what there is
    gone = score("toy", "--data", toy_file, "--server", address)
    assert gone[0] == 6
