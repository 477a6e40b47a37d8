"""Rounds one after the other: who starts where, what is scored, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.adapters.manifest import parse_manifest
from polygraft.cli import app
from polygraft.trainer.chain.recipe import load_chain, parse_chain
from polygraft.trainer.errors import RecipeError


def chain_of(tiny_base: Path, toy_file: Path, **extra: Any) -> dict[str, Any]:
    rows = {"train": str(toy_file), "split": {}}
    return {
        "name": "two",
        "base": {"path": str(tiny_base)},
        "method": {"kind": "lora", "r": 2},
        "optim": {"epochs": 1, "batch": 48, "lr": 0.01},
        "eval": {"generate": {"rows": 4, "max_new_tokens": 4}},
        "runtime": {"account_memory": False},
        "rounds": [
            {"name": "general", "data": rows},
            {
                "name": "company",
                "data": {**rows, "template": "Say {prompt}"},
                "optim": {"lr": 0.02},
            },
        ],
        **extra,
    }


def test_rounds_take_what_the_chain_says_and_change_what_they_say(
    tiny_base: Path, toy_file: Path
) -> None:
    _, (one, two) = parse_chain(chain_of(tiny_base, toy_file))
    assert (one.optim.lr, two.optim.lr, two.optim.batch) == (0.01, 0.02, 48)
    assert two.data.template == "Say {prompt}"
    assert two.method == one.method


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"round": []}, "round: unknown key, did you mean 'rounds'?"),
        ({"replay": {"capp": 1}}, "replay.capp: unknown key, did you mean 'cap'?"),
        ({"rounds": [{"name": "a", "data": {"task": "builtin:dsum"}}]}, "rounds: Tuple should"),
        (
            {"rounds": [{"name": "a", "data": {"task": "builtin:dsum"}, "init_from": "x"}] * 2},
            "rounds[0].init_from: unknown key",
        ),
        (
            {"rounds": [{"name": "a", "data": {"task": "builtin:dsum"}}] * 2},
            "two rounds have the same name",
        ),
    ],
)
def test_mistakes_are_named(
    tiny_base: Path, toy_file: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_chain(chain_of(tiny_base, toy_file) | change)
    assert says in str(caught.value)


def test_files_are_beside_the_chain_file(tmp_path: Path, tiny_base: Path) -> None:
    document = chain_of(tiny_base, Path("rows.jsonl"))
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(document))
    _, recipes = load_chain(path, ["replay.cap=5"])
    assert {recipe.data.train for recipe in recipes} == {str(tmp_path / "rows.jsonl")}


def test_a_chain_scores_every_test_set_in_every_state(
    tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    document = chain_of(tiny_base, toy_file, replay={"cap": 20}, output=str(tmp_path / "out"))
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["chain", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    folder = Path(record["directory"])
    assert folder.parent == tmp_path / "out"
    kept = json.loads((folder / "chain.json").read_text())
    assert kept == {key: value for key, value in record.items() if key != "directory"}
    assert (folder / "chain.png").read_bytes().startswith(b"\x89PNG")
    states = {state["state"]: state for state in record["states"]}
    assert list(states) == [
        "base",
        "after general",
        "after company",
        "after company, with replay",
        "company alone",
    ]
    assert all(state["scores"].keys() == {"general", "company"} for state in states.values())

    def manifest(state: str) -> Any:
        return parse_manifest((folder / states[state]["run"] / "manifest.json").read_bytes())

    first = manifest("after general").digest
    assert "parent" not in manifest("company alone").provenance
    for state in ("after company", "after company, with replay"):
        assert manifest(state).provenance["parent"] == first
    (mixed,) = [d for d in manifest("after company, with replay").data if "mixture" in d.split]
    assert mixed.rows == 20
    compared = {(c["state"], c["compared_with"], c["test"]) for c in record["changes"]}
    assert compared == {
        ("after company", "after general", "general"),
        ("after company, with replay", "after general", "general"),
        ("after company", "company alone", "company"),
        ("after company, with replay", "company alone", "company"),
    }


def test_a_chain_that_fails_at_once_leaves_nothing(
    tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    document = chain_of(tiny_base, toy_file, output=str(tmp_path / "out"))
    document["optim"]["lr"] = 1e30
    document["rounds"][1].pop("optim")
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["chain", str(path)])
    assert result.exit_code == 4
    assert list((tmp_path / "out").iterdir()) == []
