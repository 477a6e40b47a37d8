"""The examples of docs/training.md work as they stand."""

import runpy
from pathlib import Path

import pytest
import yaml

from polygraft.trainer.chain.recipe import load_chain
from polygraft.trainer.checked_data import check_data
from polygraft.trainer.config import Data
from polygraft.trainer.demo.server_process import ServerProcess
from polygraft.trainer.recipe import load_recipe, parse_recipe


def test_the_example_recipe_is_valid_and_says_the_defaults(repository_root: Path) -> None:
    config = load_recipe(repository_root / "examples" / "dialogue_summary.yaml")
    assert config.data == Data(task="builtin:dsum")


def test_the_recipes_of_the_guide_are_valid(repository_root: Path) -> None:
    guide = (repository_root / "docs" / "training.md").read_text()
    blocks = [part.split("```")[0] for part in guide.split("```yaml\n")[1:]]
    recipes = [block for block in blocks if not block.startswith("# arms.yaml")]
    assert len(recipes) == 4
    for block in recipes:
        parse_recipe(yaml.safe_load(block))


def test_the_example_mixture_is_what_its_comments_say(repository_root: Path) -> None:
    data = check_data(load_recipe(repository_root / "examples" / "mixture.yaml"))
    rows = {mixed.ingredient.name: len(mixed.rows) for mixed in data.mixed}
    assert rows == {"builtin:mix": 600, "builtin:route": 100, "builtin:story": 100}
    behind = [row for row in data.mixed[2].rows if row.example.messages]
    assert 30 < len(behind) < 70
    assert len(data.train) == 600 + 800
    assert data.notes == []


def test_the_example_chain_is_valid(repository_root: Path) -> None:
    chain, (general, company) = load_chain(repository_root / "examples" / "two_rounds.yaml")
    assert general.data == Data(task="builtin:dsum")
    assert company.data == Data(task="builtin:support", rows=100)
    assert (general.optim.epochs, company.optim.epochs) == (4, 20)
    assert chain.replay is not None


@pytest.mark.slow
def test_the_python_example_trains_pushes_and_asks(
    repository_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(repository_root / "examples" / "train_and_ask.py"))
    log, store = tmp_path / "log", tmp_path / "store"
    with ServerProcess(base="builtin:nano", store=store, log=log, threads=1) as server:
        example["main"](server.wait_ready(120).grpc)
    printed = capsys.readouterr().out
    assert "serving names@1 sha256:" in printed
    assert "Ada, Omar" in printed
