"""The page about runs: well-formed, self-contained, and it says what the numbers say."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.config import RunConfig
from polygraft.trainer.report.examples import choose_examples
from polygraft.trainer.report.page import verdict
from polygraft.trainer.run import train
from polygraft.trainer.run_listing import RunRecord

MakeConfig = Callable[..., RunConfig]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks nesting and collects text, tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_about_two_runs_stands_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"<script>alert({i})</script>", "completion": "yes" if i % 2 else "no"}
        for i in range(150)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "split": {"test": 0.3}}
    runs = [
        train(make_config(data=data, optim={"epochs": 1, "lr": lr, "batch": 32})).directory
        for lr in (0.01, 0.02)
    ]
    target = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(target)])
    assert result.exit_code == 0, result.stderr
    first = target.read_bytes()
    assert CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(target)]).exit_code == 0
    assert target.read_bytes() == first
    page = Page()
    page.feed(target.read_text())
    page.close()
    assert page.open == []
    assert "script" not in page.seen
    assert {"svg", "table", "style"} <= page.seen
    assert all(address.startswith("#") for address in page.addresses)
    text = " ".join(page.texts)
    report = json.loads((runs[1] / "report.json").read_text())
    score = report["test"][1]["scores"]["exact_match"]["value"]
    assert f"{score:.1f}" in text
    assert "<script>alert(" in text
    assert "2 runs side by side" in text
    assert "Confusion, adapter" in text
    assert "its base: exact_match" in text
    assert "Random answers" in text


def test_an_interrupted_run_has_no_page(make_config: MakeConfig, tmp_path: Path) -> None:
    kept = train(make_config(optim={"epochs": 1, "batch": 64}), score_test=False).directory
    for name in ("report.json", "adapter/adapter_model.safetensors"):
        (kept / name).unlink()
    left = kept.rename(kept.with_name(kept.name + ".interrupted"))
    result = CliRunner().invoke(app, ["report", str(left)])
    assert (result.exit_code, "is not complete" in result.stderr) == (3, True)
    assert not (left / "report.html").exists()


def record(low: float, high: float) -> RunRecord:
    test = [
        {"subject": name, "rows": 9, "scores": {"m": {"value": 1.0}}}
        for name in ("base", "adapter")
    ]
    report: dict[str, Any] = {"test": test, "difference": {"m": {"value": 0, "ci95": [low, high]}}}
    return RunRecord(Path("x"), {"eval": {"metric": "m"}}, report, True)


@pytest.mark.parametrize(
    ("bounds", "tone", "says"),
    [
        ((0.1, 2), "good", "Better than"),
        ((-2, -0.1), "bad", "Worse than"),
        ((-1, 1), "open", "Not to be told apart"),
        ((0, 1), "open", "Not to be told apart"),
    ],
)
def test_the_verdict_is_that_of_the_interval(
    bounds: tuple[float, float], tone: str, says: str
) -> None:
    found = verdict(record(*bounds))
    assert (found.tone, says in found.text) == (tone, True)


def test_examples_are_the_best_the_worst_and_others() -> None:
    rows = [
        {"variables": {"a": str(i)}, "reference": "a b c d", "base": "x", "adapter": "a b c d"[:i]}
        for i in range(1, 8)
    ]
    chosen = choose_examples(rows, 2)
    best, worst = ([row["score"] for row in chosen[kind]] for kind in ("best", "worst"))
    assert min(best) > max(worst)
    every = [row["asked"] for part in chosen.values() for row in part]
    assert len(every) == len(set(every)) == 6
    assert choose_examples([{"reference": "a"}], 2) == {}
