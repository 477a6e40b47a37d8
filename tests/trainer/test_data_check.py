"""`polygraft data`: every fault of a data set is found, with its rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def clean(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Ticket {i}", "completion": f"This is answer {i}."}
        for i in range(first, first + count)
    ]


def findings(output: str) -> dict[tuple[str, str, str], list[int]]:
    """(level, split, kind) to line numbers."""
    return {
        (f["level"], f["split"], f["kind"]): [int(row.rpartition(":")[2]) for row in f["rows"]]
        for f in json.loads(output)["findings"]
    }


def test_clean_data_has_nothing_to_complain_about(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", clean(0, 30))
    test = write(tmp_path / "test.jsonl", clean(30, 10))
    code, output, _ = run("check", train, test, "--json")
    assert (code, findings(output)) == (0, {})
    result = json.loads(output)
    assert result["ok"]
    assert result["splits"]["train"]["rows"] == 30
    tokens = result["splits"]["train"]["tokens"]["prompt"]
    assert tokens["least"] <= tokens["median"] <= tokens["p95"] <= tokens["most"]
    assert "nothing to complain about" in run("check", train, "--no-tokens")[1]


def test_every_fault_is_found_with_its_lines(tmp_path: Path) -> None:
    rows = clean(0, 60)
    rows[3]["completion"] = " "
    rows[4] = dict(rows[1])
    rows[5]["prompt"] = rows[2]["prompt"]
    rows[7]["completion"] = "This is answer that was"
    rows[8]["completion"] = "Ends </s> here."
    rows[9]["prompt"] = "long " * 600
    rows[10] = {"prompt": "no answer"}
    train = write(tmp_path / "train.jsonl", rows)
    with train.open("a") as file:
        file.write("{broken\n")
    test = write(
        tmp_path / "test.jsonl",
        [*clean(50, 1), *clean(90, 5), {**clean(51, 1)[0], "completion": "Other."}],
    )
    code, output, _ = run("check", train, test, "--json")
    assert code == 3
    found = findings(output)
    assert found.pop(("error", "train", "schema")) in ([11], [61])
    assert found == {
        ("error", "train", "empty_completion"): [4],
        ("warning", "train", "repeated"): [5],
        ("warning", "train", "contradictory"): [3, 6],
        ("warning", "train", "looks_cut"): [8],
        ("error", "train", "special_token"): [9],
        ("error", "train", "too_long"): [10],
        ("error", "test", "leaked"): [1],
        ("warning", "test", "leaked_prompt"): [7],
    }
    schema = [f["rows"][0] for f in json.loads(output)["findings"] if f["kind"] == "schema"]
    assert schema == [f"{train}:11", f"{train}:61"]
    code, output, _ = run("check", train, test)
    assert code == 3
    assert f"{train}:4" in output


def test_labels_and_groups(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"p{i}", "completion": "b" if i in (3, 9) else "a", "chat": f"g{i}"}
        for i in range(60)
    ]
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{"prompt": "q", "completion": "a", "chat": "g7"}])
    code, output, _ = run("check", train, test, "--group", "chat", "--no-tokens", "--json")
    assert json.loads(output)["splits"]["train"]["labels"] == {"a": 58, "b": 2}
    assert (code, findings(output)) == (
        3,
        {
            ("warning", "train", "rare_label"): [4, 10],
            ("warning", "train", "unbalanced"): [1],
            ("error", "test", "leaked_group"): [1],
        },
    )


def test_a_recipe_is_checked_as_it_would_train(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*clean(0, 60), {"prompt": "x"}])
    recipe = tmp_path / "run.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"train": "rows.jsonl", "split": {}}}))
    code, output, _ = run("check", recipe, "--json")
    assert code == 3
    assert findings(output) == {("error", "all", "schema"): [61]}
    assert set(json.loads(output)["splits"]) == {"train", "validation", "test"}


def test_a_split_keeps_groups_whole_and_repeats_itself(tmp_path: Path) -> None:
    rows = [{**row, "chat": f"g{i // 3}"} for i, row in enumerate(clean(0, 90))]
    rows.append({**rows[0], "chat": "other", "id": 1})
    data = write(tmp_path / "rows.jsonl", rows)
    assert run("split", data, "--by", "chat", "--out", tmp_path / "a")[0] == 0
    assert run("split", data, "--by", "chat", "--out", tmp_path / "b")[0] == 0
    names = ("train", "validation", "test")
    parts = {
        name: [json.loads(x) for x in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
        for name in names
    }
    for name in names:
        file = f"{name}.jsonl"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    groups = [{row["chat"] for row in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert 89 <= sum(map(len, parts.values())) <= 91
    code, _, error = run("split", data, "--by", "chat", "--out", tmp_path / "a")
    assert (code, "is there already" in error) == (2, True)
    code, _, error = run("split", data, "--by", "chap", "--out", tmp_path / "c")
    assert (code, "rows.jsonl:1: chap: no such field" in error) == (3, True)
    assert not (tmp_path / "c").exists()


def test_rendering_marks_what_is_learned(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", clean(0, 3))
    code, output, _ = run("render", data, "--rows", "2", "--json")
    assert code == 0
    first, _ = map(json.loads, output.splitlines())
    asked = "".join(t["text"] for t in first["tokens"] if not t["supervised"])
    learned = "".join(t["text"] for t in first["tokens"] if t["supervised"])
    assert asked.endswith("Ticket 0")
    assert learned == "This is answer 0.</s>"
    assert "⟦This is answer 0.</s>⟧" in run("render", data)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("check", "a.yaml", "b.yaml"), 2, "give one recipe"),
        (("check", "none.jsonl"), 3, "none.jsonl: cannot be read"),
        (("check", "x.jsonl", "--form", "texts"), 2, "data.form"),
        (("split", "x.jsonl", "--out", "o", "--test", "0.95"), 2, "validation + test"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], code: int, says: str) -> None:
    found, _, error = run(*arguments)
    assert (found, says in error) == (code, True)


def test_templates_are_listed_shown_and_applied(tmp_path: Path) -> None:
    def templates(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["templates", *map(str, arguments)])
        return result.exit_code, result.stdout + result.stderr

    assert "sentiment-inverted" in templates("list")[1]
    assert "an adapter carries it" in templates("show", "sentiment-tone")[1]
    assert "sends the finished prompt" in templates("show", "paraphrase-inverted")[1]
    data = write(tmp_path / "rows.jsonl", [{"ticket": "late", "team": "shipping"}])
    code, output = templates("apply", data, "--out", tmp_path / "o.jsonl", "--task", "routing")
    assert (code, "1 rows in 6 wordings" in output) == (0, True)
    assert json.loads((tmp_path / "o.jsonl").read_text())["completion"] == "shipping"
    assert templates("apply", data, "--out", tmp_path / "p.jsonl")[0] == 2
