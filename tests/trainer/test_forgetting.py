"""What a change costs the base's old skills: counted as an oracle counts, detached to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.base.mix import exact_match, mix_rows
from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.forgetting.general import load_general
from polygraft.trainer.forgetting.measure import ask_base
from polygraft.trainer.forgetting.measure import forget as measure
from polygraft.trainer.forgetting.record import make_skills
from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer
from polygraft.trainer.recipe import load_recipe
from polygraft.trainer.run import train

MakeConfig = Callable[..., RunConfig]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 2},
    "prompt": {"kind": "prompt", "virtual_tokens": 4, "init": "vocab"},
    "prefix": {"kind": "prefix", "virtual_tokens": 4},
    "houlsby": {"kind": "houlsby", "bottleneck": 4},
    "selective": {"kind": "selective", "layers": [-1]},
    "full": {"kind": "full"},
}


@pytest.fixture(scope="module")
def general_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Two skills: `known` is what the random base says anyway, `unknown` is not."""
    base = load_frozen_base(
        str(tiny_base), load_tokenizer(str(tiny_base)), dtype="fp32", device="cpu"
    )
    path = tmp_path_factory.mktemp("general") / "general.jsonl"
    rows = [
        {"skill": s, "prompt": f"{s} {i}", "completion": "x"}
        for i in range(2)
        for s in ("known", "unknown")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from polygraft.trainer.local import asker

    general = load_general(str(path))
    answers = asker(base, None)(general.prompt, general.rows)
    for row, answer, example in zip(
        sorted(rows, key=lambda r: r["skill"]), answers, general.rows, strict=True
    ):
        assert row["prompt"] == example.variables["prompt"]
        if row["skill"] == "known":
            row["completion"] = answer.text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_bundled_mix_is_scored_as_the_base_card_scores_it() -> None:
    base = load_frozen_base(
        "builtin:nano", load_tokenizer("builtin:nano"), dtype="fp32", device="cpu"
    )
    general = load_general("builtin:mix", per_skill=2)
    hits = ask_base(base, general).hits
    *skills, total = make_skills([row.group for row in general.rows], hits, hits, hits)
    oracle = exact_match(base.model, base.tokenizer, mix_rows(0, 2))  # type: ignore[arg-type]
    assert {s.name: s.before.value for s in skills} == {
        k: v for k, v in oracle.items() if k != "mean"
    }
    assert total.before.value == pytest.approx(oracle["mean"])


@pytest.mark.parametrize("kind", METHODS)
def test_a_detached_change_leaves_every_logit_as_it_was(
    make_config: MakeConfig, tiny_base: Path, general_file: Path, kind: str
) -> None:
    config = make_config(
        method=METHODS[kind],
        optim={"epochs": 1, "lr": 0.05, "batch": 32},
        eval={"generate": {"rows": 2, "max_new_tokens": 4}, "forgetting": str(general_file)},
    )
    result = train(config, score_test=False)
    assert result.forgetting is not None
    assert result.forgetting.bit_equal
    known, unknown = result.forgetting.skills
    assert (known.before.value, unknown.before.value) == (100.0, 0.0)
    assert known.detached.value == 100.0
    report = json.loads((result.directory / "report.json").read_text())
    assert report["forgetting"] == result.forgetting.as_json()
    # read back from its files, the change gives the same numbers
    again = measure(result.directory, load_general(str(general_file)), str(tiny_base))
    assert [s.as_json() for s in again.skills] == [s.as_json() for s in result.forgetting.skills]


def test_skills_that_fell_are_told_from_bad_luck() -> None:
    names = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    before = [True] * 30
    attached = [False] * 6 + [True] * 4 + [True] * 9 + [False] + [True] * 10
    *skills, total = make_skills(names, before, attached, before)
    assert [(s.name, s.drop.value, s.has_fallen) for s in skills] == [
        ("a", 60.0, True),
        ("b", 10.0, False),  # one row of ten: the interval reaches 0
        ("c", 0.0, False),
    ]
    assert total.drop.value == pytest.approx(100 * 7 / 30)
    assert total.drop.interval is not None
    low, high = total.drop.interval
    # two standard errors of the mean of 30 paired differences, 7 of them 1
    error = 196 * (7 / 30 * 23 / 30 / 30) ** 0.5
    assert abs((high - low) / 2 - error) < 5


def test_the_command_shows_json_and_bars(
    make_config: MakeConfig, tiny_base: Path, general_file: Path, tmp_path: Path
) -> None:
    run = train(make_config(optim={"epochs": 1, "lr": 0.05, "batch": 32}), score_test=False)
    picture = tmp_path / "bars.png"
    words = ["forget", str(run.directory), "--general", str(general_file), "--base", str(tiny_base)]
    result = CliRunner().invoke(app, [*words, "--json", "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert record["schema"] == "polygraft.forgetting/1"
    assert record["detached_logits_bit_equal"] is True
    assert {skill["skill"] for skill in record["skills"]} == {"known", "unknown"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(app, words)
    assert "bit-equal to the base" in shown.stdout
    assert "unknown" in shown.stdout


def test_a_change_that_cannot_be_taken_back_is_found(
    make_config: MakeConfig, tiny_base: Path, general_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polygraft.trainer.methods.adapted import ChangedModel

    run = train(
        make_config(method={"kind": "full"}, optim={"epochs": 1, "lr": 0.05, "batch": 32}),
        score_test=False,
    )
    monkeypatch.setattr(ChangedModel, "_detach", lambda self: None)
    monkeypatch.setattr(ChangedModel, "_attach", lambda self: None)
    words = ["forget", str(run.directory), "--general", str(general_file), "--base", str(tiny_base)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 5
    assert "does not give the base's logits to the bit" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 2, "no directory"),
        ([".", "--general", "builtin:other"], 2, "builtin:mix"),
        ([".", "--general", "missing.jsonl"], 3, "missing.jsonl"),
    ],
)
def test_bad_input_is_refused(words: list[str], code: int, says: str) -> None:
    result = CliRunner().invoke(app, ["forget", *words])
    assert (result.exit_code, says in result.stderr) == (code, True)


def test_a_file_of_old_skills_lies_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text('data: {task: "builtin:dsum"}\neval: {forgetting: old.jsonl}\n')
    assert load_recipe(path).eval.forgetting == str(tmp_path / "old.jsonl")
    assert load_recipe(path, ["eval.forgetting=builtin:mix"]).eval.forgetting == "builtin:mix"


def test_an_unknown_mix_is_refused_before_anything_is_written(make_config: MakeConfig) -> None:
    config = make_config(eval={"forgetting": "builtin:mixx"})
    with pytest.raises(RecipeError, match="builtin:mix"):
        train(config)
    assert not config.output.exists()
