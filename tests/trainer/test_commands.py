"""`polygraft train` and `polygraft score` as a user meets them: output and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from polygraft.cli import app


@pytest.fixture
def recipe(tiny_base: Path, toy_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    content = {
        "name": "toy",
        "base": {"path": str(tiny_base)},
        "data": {"train": str(toy_file), "split": {}},
        "optim": {"epochs": 1, "batch": 32},
        "eval": {"generate": {"rows": 4, "max_new_tokens": 4}},
        "output": str(tmp_path / "runs"),
    }
    path.write_text(yaml.safe_dump(content))
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_run_can_be_scored_from_its_directory(
    recipe: Path, tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    code, output, _ = run("train", recipe, "--set", "seed=3", "--output", tmp_path / "x", "--json")
    assert code == 0
    trained = json.loads(output)
    assert Path(trained["run"]).parent == tmp_path / "x"
    assert [subject["subject"] for subject in trained["test"]] == ["base", "adapter"]

    answers = tmp_path / "answers.jsonl"
    arguments = ["--data", toy_file, "--base", tiny_base, "--predictions", answers, "--json"]
    code, output, _ = run("score", trained["run"], *arguments)
    assert code == 0
    scored = json.loads(output)
    assert scored["digest"] == trained["digest"]
    assert scored["subjects"][1]["rows"] == len(answers.read_text().splitlines()) == 120

    # The rows that the run held out get the same answers again.
    held_out = Path(trained["run"]) / "predictions.test.jsonl"
    first = {(r := json.loads(line))["id"]: r for line in held_out.read_text().splitlines()}
    again = {(r := json.loads(line))["id"]: r for line in answers.read_text().splitlines()}
    assert first == {key: again[key] for key in first}


def test_an_adapter_of_another_base_is_refused(
    recipe: Path, toy_file: Path, tmp_path: Path
) -> None:
    from tiny_models import save_base, tiny_llama

    _, output, _ = run("train", recipe, "--json")
    other = save_base(tmp_path / "other", tiny_llama(seed=1))
    code, _, error = run("score", json.loads(output)["run"], "--data", toy_file, "--base", other)
    assert code == 5
    assert "it was made for base 'tiny'" in error


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ("optim.epoch=1", 2, "optim.epoch: unknown key, did you mean 'epochs'?"),
        ("optim.lr=1e9", 4, "nothing was saved"),
        ("data.completion=nothing", 3, "nothing: no such field"),
        ("data.train=none.jsonl", 3, "cannot be read"),
        ("data.max_length=4", 3, "rows are longer than 4 tokens"),
        ("data.mixture=[{task: 'builtin:dsun'}]", 2, "no built-in task 'dsun'"),
        ("method={kind: lora, quantize: nf4}", 2, "is not trained on yet"),
        ("init_from=nothing", 2, "there is no such directory"),
    ],
)
def test_a_failure_is_one_sentence_and_its_exit_code(
    recipe: Path, tmp_path: Path, change: str, code: int, says: str
) -> None:
    assert (result := run("train", recipe, "--set", change))[0] == code
    assert says in result[2]
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "give a recipe, or --resume"),
        (["score", "x"], "give --data FILE or --task"),
        (["score", "x", "--task", "builtin:dsum"], "x is no directory"),
        (["score", "x", "--task", "builtin:dsum", "--split", "train"], "validation or test"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], says: str) -> None:
    code, _, error = run(*arguments)
    assert code == 2
    assert says in error


@pytest.mark.parametrize("command", ["train", "score", "demo", "icl", "mix", "chain"])
def test_help_loads_nothing_heavy(command: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'grpc', 'matplotlib', 'nltk'}"
    program = (
        "import sys; sys.argv = ['polygraft', %r, '--help']\n"
        "from polygraft.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        f"print('LOADED', sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program % command], capture_output=True, text=True, check=True
    )
    assert "LOADED []" in done.stdout


def test_configuration_errors_come_before_torch(recipe: Path) -> None:
    program = (
        "import sys; sys.argv = ['polygraft', 'train', %r, '--set', 'optim.lr=x']\n"
        "from polygraft.cli import app\n"
        "try: app()\n"
        "except SystemExit as end: print('CODE', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program % str(recipe)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CODE 2 False" in done.stdout


def test_mix_shows_and_writes_what_is_trained_on(
    recipe: Path, toy_file: Path, tmp_path: Path
) -> None:
    mixture = (
        f"data.mixture=[{{data: '{toy_file}', cap: 20, rate: 1.5, template: 'Again {{prompt}}'}}]"
    )
    out = tmp_path / "mixed.jsonl"
    code, output, _ = run("mix", recipe, "--set", mixture, "--out", out, "--json")
    assert code == 0
    own, mixed = json.loads(output)["parts"]
    assert (mixed["distinct"], mixed["rows"], mixed["rate"]) == (20, 30, 1.5)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == own["rows"] + 30
    assert all(row["prompt"].startswith("Again ") for row in rows[-30:])
    # One token per byte and an end token: the counts can be counted.
    texts = [row["prompt"] + row["completion"] for row in rows[-30:]]
    assert mixed["tokens"] == sum(len(text) for text in texts) + 30
    again = tmp_path / "again.jsonl"
    code, output, _ = run("mix", recipe, "--set", mixture, "--out", again)
    assert (code, again.read_bytes()) == (0, out.read_bytes())
    assert "toy.jsonl" in output
    code, _, error = run("mix", recipe, "--out", tmp_path / "no" / "where.jsonl")
    assert (code, "cannot be written" in error) == (2, True)
