"""`polygraft bench` and `polygraft holistic` as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.bench.served_model import ServedModel, open_served


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_a_mini_suite_out_of_the_box_and_through_a_server(
    served: str, tmp_path: Path, no_network: None
) -> None:
    asked = ("bench", "mini-bigbench", "--limit", "12", "--json", "--out", tmp_path)
    local, remote = run(*asked), run(*asked, "--target", f"grpc://{served}")
    assert (local[0], remote[0]) == (0, 0), local[2] + remote[2]
    here, there = json.loads(local[1]), json.loads(remote[1])
    assert here["tasks"] == there["tasks"]
    assert here["mean_accuracy"]["value"] > 60  # the bundled base knows its world
    assert here["asked"] == {"limit": 12, "shots": 0, "chat": True}
    one = here["tasks"]["mini_lookup"]
    assert (one["rows"], one["rows_in_file"]) == (12, 120)
    assert re.fullmatch(r"[0-9a-f]{64}", one["definition_sha256"])
    signature = one["scores"]["acc"]["signature"]
    assert re.match(r"lm-eval:0\.4\.\d+\|bigbench/multiple_choice_template_a_yaml@", signature)
    directory = Path(here["directory"])
    assert json.loads((directory / "results.json").read_text())["tasks"] == here["tasks"]
    samples = (directory / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 4 * 12
    assert {"task", "row", "asked", "options", "answers", "target", "acc"} <= set(
        json.loads(samples[0])
    )
    assert not list(tmp_path.glob(".*"))


def test_a_served_adapter_is_scored_and_named(served: str, tmp_path: Path) -> None:
    asked = ("bench", "mini-glue", "--task", "mini_sst2", "--limit", "10", "--out", tmp_path)
    code, out, err = run(*asked, "--target", f"grpc://{served}", "--adapter", "soft")
    assert code == 0, err
    assert "mini_sst2" in out
    assert "sha256:" in out
    assert "compare with nothing but itself" in out
    missing = run(*asked, "--target", f"grpc://{served}", "--adapter", "sofd")
    assert missing[0] == 2
    assert "soft" in missing[2]  # names what there is


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("mini-glu",), 2, "did you mean mini-glue?"),
        (("glue",), 2, "--data-dir"),
        (("mini-glue", "--task", "mini_sst"), 2, "did you mean mini_sst2?"),
        (("mini-glue", "--target", "nano"), 2, "local:builtin:nano"),
        (("mini-glue", "--adapter", "x"), 2, "a local target is its own adapter"),
        (("mini-glue", "--target", "local:/absent"), 2, "/absent"),
        (("mini-glue", "--shots", "6"), 2, "has 5 examples to show, fewer than 6"),
        (("mini-glue", "--target", "grpc://127.0.0.1:9"), 6, "no server answers"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    found = run("bench", *arguments, "--out", tmp_path / "out")
    assert found[0] == code, found[2]
    assert text in found[2]
    assert not (tmp_path / "out").exists()


def test_missing_data_has_the_exit_code_of_data(tmp_path: Path) -> None:
    code, _, err = run("bench", "glue", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert code == 3
    assert err.count("data missing") == 9


def test_a_server_that_goes_half_way_ends_it(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score: Callable[..., Any] = ServedModel.score

    def interrupted(self: ServedModel, *arguments: Any) -> Any:
        monkeypatch.setattr(self, "_address", "127.0.0.1:9")  # from now on nobody is there
        return score(self, *arguments)

    monkeypatch.setattr(ServedModel, "score", interrupted)
    out = tmp_path / "out"
    found = run("bench", "mini-glue", "--limit", "4", "--target", f"grpc://{served}", "--out", out)
    assert found[0] == 6, found[2]
    assert "no server answers" in found[2]
    assert not out.exists()
    assert open_served(served).window == 512


def test_the_report_on_several_axes(tmp_path: Path, no_network: None) -> None:
    page = tmp_path / "pages" / "nano.html"
    code, out, err = run("holistic", "mini-bigbench", "mini-glue", "--limit", "5", "--out", page)
    assert code == 0, err
    assert "not measured: bias, toxicity" in out
    assert "tokens/s" in out
    record = json.loads(page.with_suffix(".json").read_text())
    assert len(record["scenarios"]) == 6
    assert record["not_measured"] == ["bias", "toxicity"]
    one = record["scenarios"]["mini_speakers"]
    assert one["rows"] == 5
    worst = one["robustness"]["worst_of_all_forms"]["value"]
    forms = one["robustness"]["accuracy_by_change"]
    assert set(forms) == {"case", "typos", "white space"}
    assert worst <= min(one["accuracy"]["value"], *(form["value"] for form in forms.values()))
    assert one["fairness"]["rows_with_names"] == 5
    assert record["scenarios"]["mini_topics"]["fairness"] is None
    assert 0 <= record["pooled_calibration"]["expected_calibration_error"] <= 1
    assert record["efficiency"]["weights_megabytes"] > 3
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "not measured: bias, toxicity" in text
    assert not re.search(r"<script|<link|src=|@import|url\(http", text)
