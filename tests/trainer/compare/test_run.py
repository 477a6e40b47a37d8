"""Comparisons on a tiny base: what is written, what is kept, what a stop leaves behind."""

import json
import multiprocessing
import os
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.compare.jobs import Job
from polygraft.trainer.compare.page import write_page
from polygraft.trainer.compare.progress import Unseen
from polygraft.trainer.compare.recipe import parse_comparison
from polygraft.trainer.compare.run import run_comparison
from polygraft.trainer.compare.store import Store
from polygraft.trainer.errors import Interrupted, RecipeError


class Counted(Unseen):
    """Remembers what ended; presses Ctrl-C after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.ended_arms: list[str] = []
        self.problems: list[str] = []
        self.kept = 0
        self.stop_after = stop_after

    def begin(self, jobs: Any, kept: int) -> None:
        self.kept = kept

    def ended(self, job: Job, problem: str | None) -> None:
        self.ended_arms.append(job.arm)
        self.problems += [problem] if problem else []

    def started(self, job: Job) -> None:
        if self.stop_after is not None and len(self.ended_arms) == self.stop_after:
            raise KeyboardInterrupt


class Page(HTMLParser):
    """Collects what a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]


def general(path: Path) -> str:
    rows = [{"skill": "a", "prompt": str(i), "completion": "x"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def figures(folder: Path) -> Any:
    """compare.json without what changes from run to run."""
    found = json.loads((folder / "compare.json").read_text())
    for arm in found["arms"]:
        del arm["cost"], arm["runs"]
    return found["arms"]


def test_a_stopped_comparison_goes_on_and_gives_the_same(
    make_document: Any, tmp_path: Path
) -> None:
    arms = {
        "base": {"shots": 0},
        "lora": {"recipe": {"method": {"kind": "lora", "r": 2}}, "forgetting": True},
        "full": {"recipe": {"method": {"kind": "full"}}, "forgetting": True},
    }
    document = make_document(arms=arms, general=general(tmp_path / "old.jsonl"))
    comparison = parse_comparison(document)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = run_comparison(comparison, whole, parallel=1, monitor=Unseen())
    assert all(not result.problems for result in outcome.results.values())
    with pytest.raises(Interrupted, match="2 of 3 jobs are done"):
        run_comparison(comparison, parts, parallel=1, monitor=Counted(stop_after=2))
    assert not (parts / "compare.json").exists()
    rest = Counted()
    run_comparison(comparison, parts, parallel=1, monitor=rest)
    assert (rest.ended_arms, rest.kept) == (["full"], 2)
    assert figures(parts) == figures(whole)
    assert json.loads((whole / "compare.json").read_text())["schema"] == "polygraft.compare/1"
    assert figures(whole)[1]["detached_bit_equal"] is True
    page = write_page(outcome).read_text()
    parser = Page()
    parser.feed(page)
    assert parser.addresses
    assert all(address.startswith("#") for address in parser.addresses)
    assert (whole / "forgetting.png").read_bytes().startswith(b"\x89PNG")


def test_shots_and_rounds_are_arms_too(make_document: Any, tmp_path: Path) -> None:
    method = {"method": {"kind": "lora", "r": 2}, "optim": {"batch": 8}}
    arms = {
        "shots": {"shots": 1},
        "rounds": {"recipe": method, "rounds": [{}, {"data": {"rows": 64}}]},
        "alone": {"recipe": {**method, "data": {"rows": 64}}},
    }
    comparison = parse_comparison(make_document(arms=arms))
    outcome = run_comparison(comparison, tmp_path, parallel=1, monitor=Unseen())
    assert {name: r.problems for name, r in outcome.results.items()} == {n: [] for n in arms}
    context = outcome.results["shots"].records[0]["context"]
    assert context["prompt_tokens"] > 0
    first, second = outcome.results["rounds"].records[0]["runs"]
    manifest = json.loads((tmp_path / "runs" / second / "manifest.json").read_text())
    parent = json.loads((tmp_path / "runs" / first / "report.json").read_text())["digest"]
    assert parent in json.dumps(manifest["provenance"])
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_run_that_was_cut_leaves_nothing_and_is_done_again(
    make_document: Any, tmp_path: Path
) -> None:
    class CtrlC(Unseen):
        def advanced(self, job: Job, fraction: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    comparison = parse_comparison(make_document()).only(["lora"])
    with pytest.raises(Interrupted, match="0 of 1 jobs"):
        run_comparison(comparison, tmp_path, parallel=1, monitor=CtrlC())
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "runs" / ".lora-half").mkdir()  # as kill -9 leaves it
    outcome = run_comparison(comparison, tmp_path, parallel=1, monitor=Unseen())
    assert [p.name for p in (tmp_path / "runs").iterdir()] == outcome.results["lora"].records[0][
        "runs"
    ]


def test_a_worker_that_dies_costs_its_job_only(make_document: Any, tmp_path: Path) -> None:
    class Killer(Counted):
        def started(self, job: Job) -> None:
            if job.arm == "lora" and not self.ended_arms:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)

    arms = {
        "lora": {"recipe": {"method": {"kind": "lora", "r": 2}}},
        "wrong": {"recipe": {"method": {"kind": "lora", "r": 2, "targets": ["nothing"]}}},
    }
    comparison = parse_comparison(make_document(arms=arms))
    outcome = run_comparison(comparison, tmp_path, parallel=2, monitor=Killer())
    problems = [problem for result in outcome.results.values() for problem in result.problems]
    assert "its process died" in " ".join(problems)
    records = [record for result in outcome.results.values() for record in result.records]
    kept = {run for record in records for run in record["runs"]}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == kept
    again = run_comparison(comparison, tmp_path, parallel=1, monitor=Unseen())
    assert "nothing" in again.results["wrong"].problems[0]
    assert again.results["lora"].problems == []


def test_two_comparisons_do_not_share_a_folder(make_document: Any, tmp_path: Path) -> None:
    with Store(tmp_path).opened(), pytest.raises(RecipeError, match="another comparison"):
        run_comparison(parse_comparison(make_document()), tmp_path, parallel=1, monitor=Unseen())


def test_a_missed_target_is_the_exit_code(make_document: Any, tmp_path: Path) -> None:
    targets = [{"say": "the base knows it all", "of": "base", "at_least": 100}]
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(make_document(targets=targets)))
    words = ["compare", str(path), "--arm", "base", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--parallel", "1", "--json"])
    assert result.exit_code == 5, result.output
    assert json.loads(result.stdout)["verdicts"][0]["reached"] is False
    assert "1 of 1 targets were not reached" in result.stderr
    shown = CliRunner().invoke(app, [*words, "--parallel", "1"])
    assert "NOT REACHED  the base knows it all" in shown.stdout
    assert "1 job is done already" in shown.stderr
