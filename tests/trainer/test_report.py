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
from polygraft.trainer.forgetting.record import Forgetting, make_skills
from polygraft.trainer.generate import Answer
from polygraft.trainer.recipe import load_resolved
from polygraft.trainer.report.examples import answers_of, choose_examples
from polygraft.trainer.report.pages import write_pages
from polygraft.trainer.report.verdict import verdict
from polygraft.trainer.reporting import add_scores
from polygraft.trainer.run import train
from polygraft.trainer.run_listing import RunRecord, read_run
from polygraft.trainer.scoring import Ask, score_subject
from polygraft.trainer.source import load_source

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
    assert "Answers drawn at random" in text


def test_a_run_says_for_people_what_it_is(make_config: MakeConfig, tmp_path: Path) -> None:
    labels = [{"prompt": f"{i}?", "completion": "yes" if i % 2 else "no"} for i in range(150)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*labels, labels[0]]))
    run = train(make_config(data={"train": str(path), "split": {"test": 0.3}})).directory
    for name in ("scores.png", "confusion.png", "loss.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "report.json").read_text())
    assert (report["schema"], report["method"]) == ("polygraft.report/1", "lora")
    assert set(report) >= {"digest", "base", "metric", "data", "best", "test", "difference", "cost"}
    assert any("repeat" in warning for warning in report["warnings"])
    page = Page()
    page.feed((run / "report.html").read_text())
    assert page.open == []
    text = " ".join(page.texts)
    assert report["warnings"][0] in text
    card = (run / "MODEL_CARD.md").read_text()
    value = report["test"][1]["scores"]["exact_match"]["value"]
    assert verdict(read_run(run)).text in card
    assert verdict(read_run(run)).text in text
    assert f"{value:.1f} [" in card
    assert report["digest"] in card
    assert 'variables={"prompt": "..."}' in card


def always(text: str) -> Ask:
    return lambda prompt, rows: [Answer([], text, True) for _ in rows]


def test_what_a_server_answered_takes_the_place_of_what_was_measured_here(
    make_config: MakeConfig,
) -> None:
    run = train(make_config(), score_test=False).directory
    assert "was not scored" in verdict(read_run(run)).text
    rows = load_source(load_resolved(run).data).splits.test
    subjects = [
        score_subject(name, {"segments": []}, rows, always(text))
        for name, text in (("base", "x"), ("few-shot", "dog"), ("adapter", "cat"))
    ]
    hits = [True] * 30, [False] * 25 + [True] * 5, [True] * 30
    *skills, total = make_skills(["copy"] * 30, *hits)
    forgetting = Forgetting("toy", "tiny", "rows", tuple(skills), total, bit_equal=True)
    add_scores(run, subjects, rows, forgetting)
    write_pages(run)
    text = (run / "report.html").read_text()
    assert "few-shot" in text
    assert "loses more than chance at: copy" in text
    assert text.count("to the bit") == 1
    assert "fallen: copy" in (run / "MODEL_CARD.md").read_text()
    assert "Not to be told apart" in text or "Better than" in text


def test_answers_are_marked_where_the_reference_says_the_same() -> None:
    row = {
        "id": "1",
        "reference": "Ann meets Bo at noon",
        "base": "",
        "adapter": "Ann meets Cy at noon",
    }
    answers = answers_of(row)
    assert answers["base"] == []
    assert [same for _, same in answers["adapter"]] == [True, True, False, True, True]


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
