"""A round that goes on from an earlier one: where it starts, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_base, tiny_llama

from polygraft.adapters.errors import AdapterIncompatible
from polygraft.adapters.manifest import parse_manifest
from polygraft.trainer import methods
from polygraft.trainer.config import RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.continuing import continue_from
from polygraft.trainer.prepare import prepare
from polygraft.trainer.progress import Silent
from polygraft.trainer.recipe import parse_recipe
from polygraft.trainer.run import train

MakeConfig = Callable[..., RunConfig]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 4, "dora": True},
    "prompt": {"kind": "prompt", "virtual_tokens": 4, "init": "vocab"},
    "prefix": {"kind": "prefix", "virtual_tokens": 4},
    "houlsby": {"kind": "houlsby", "bottleneck": 4},
    "selective": {"kind": "selective", "layers": [-1], "l2sp": 0.1},
}
SHORT = {"epochs": 1, "batch": 48, "lr": 0.01}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, toy_file: Path) -> Path:
    """A finished first round."""
    recipe = {
        "base": {"path": str(tiny_base)},
        "data": {"train": str(toy_file), "split": {}},
        "method": METHODS["lora"],
        "optim": SHORT,
        "eval": {"metric": "loss"},
        "runtime": {"account_memory": False},
        "output": str(tmp_path_factory.mktemp("first")),
    }
    return train(parse_recipe(recipe), score_test=False).directory


def first_round(make_config: MakeConfig, method: dict[str, Any]) -> Path:
    return train(make_config(method=method, optim=SHORT), score_test=False).directory


@pytest.mark.parametrize("kind", METHODS)
def test_a_round_starts_with_the_very_tensors_of_the_earlier_one(
    make_config: MakeConfig, kind: str
) -> None:
    earlier = first_round(make_config, METHODS[kind])
    config = make_config(method=METHODS[kind], optim=SHORT, init_from=str(earlier), seed=7)
    prepared = prepare(config, Silent())
    adapted = methods.attach(prepared.base, prepared.config, "")
    continue_from(adapted, earlier, prepared.geometry)
    from polygraft.trainer.saved import save_adapter

    again = earlier.parent / "again"
    save_adapter(adapted, prepared.base, again)
    kept = load_file(earlier / "adapter/adapter_model.safetensors")
    found = load_file(again / "adapter_model.safetensors")
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    if kind == "selective":  # the penalty counts from the earlier round, detaching goes to the base
        assert float(adapted.distance().detach()) == 0.0  # type: ignore[union-attr, operator]


def test_the_manifest_names_the_parent(make_config: MakeConfig, lora: Path) -> None:
    earlier = lora
    config = make_config(method=METHODS["lora"], optim=SHORT, init_from=str(earlier))
    result = train(config, score_test=False)
    one = parse_manifest((earlier / "manifest.json").read_bytes())
    two = parse_manifest((result.directory / "manifest.json").read_bytes())
    assert two.provenance["parent"] == one.digest
    assert str(earlier) not in (result.directory / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"kind": "prompt", "init": "vocab"}, "method.kind: .* it holds lora, .* trains prompt"),
        ({"kind": "lora", "r": 8, "dora": True}, "method.r: .* it has r 4, and this recipe 8"),
        ({"kind": "lora", "r": 4, "dora": True, "alpha": 4}, "method.alpha: .* lora_alpha 8, .* 4"),
        ({"kind": "lora", "r": 4}, "method.dora: .* use_dora True, and this recipe False"),
        (
            {"kind": "lora", "r": 4, "dora": True, "targets": "attention"},
            "method: .* other parts of the base: 18 tensors",
        ),
        ({"kind": "p_tuning", "virtual_tokens": 4}, "was made by an encoder"),
        ({"kind": "full"}, "it holds lora, and this recipe trains full"),
    ],
)
def test_another_method_or_shape_is_refused_by_name(
    make_config: MakeConfig, lora: Path, method: dict[str, Any], says: str
) -> None:
    config = make_config(method=method, optim=SHORT, init_from=str(lora))
    with pytest.raises(RecipeError, match=says) as caught:
        train(config)
    assert caught.value.exit_code == 2
    assert list(config.output.iterdir()) == []


def test_what_is_no_adapter_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such directory"):
        train(make_config(init_from=str(tmp_path / "nothing")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no adapter to go on from"):
        train(make_config(init_from=str(tmp_path / "empty")))


def test_an_adapter_of_another_base_is_refused(
    make_config: MakeConfig, lora: Path, tmp_path: Path
) -> None:
    other = save_base(tmp_path / "other", tiny_llama(seed=5))
    config = make_config(base={"path": str(other)}, method=METHODS["lora"], init_from=str(lora))
    with pytest.raises(AdapterIncompatible, match="made for base 'tiny'"):
        train(config)
    assert list(config.output.iterdir()) == []


def test_broken_tensors_are_not_taken_over(
    make_config: MakeConfig, lora: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    tensors = load_file(lora / "adapter/adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name][0] = float("nan")
    save_file(tensors, bare / "adapter_model.safetensors")
    (bare / "adapter_config.json").write_text((lora / "adapter/adapter_config.json").read_text())
    assert json.loads((bare / "adapter_config.json").read_text())["r"] == 4
    config = make_config(method=METHODS["lora"], init_from=str(bare))
    with pytest.raises(RecipeError, match="NaN or infinite"):
        train(config)
