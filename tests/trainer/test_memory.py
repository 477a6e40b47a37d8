"""The predicted memory of a step against torch's own account of a real one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import tiny_gpt2, tiny_llama
from torch import nn
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.config import Full, Houlsby, Lora, Selective
from polygraft.trainer.memory import measure, predict
from polygraft.trainer.methods import attach_unserved
from polygraft.trainer.methods.lora import attach_lora

METHODS: list[Any] = [
    Full(),
    Selective(layers=(-1,)),
    Houlsby(bottleneck=8),
    Lora(r=4),
    Lora(r=4, targets="attention", dora=True),
]


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)


def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.ones(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # as in nearly every batch; without padding torch needs no mask at all
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def attach(model: Any, method: Any) -> Any:
    attached = (
        attach_lora(model, method, seed=0)
        if isinstance(method, Lora)
        else attach_unserved(model, method, seed=0)
    )
    return attached.train()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
@pytest.mark.parametrize(("rows", "length"), [(1, 32), (8, 64)])
def test_a_prediction_is_within_a_tenth_of_what_the_profiler_sees(
    make: Any, method: Any, rows: int, length: int
) -> None:
    model = attach(make(), method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    use = predict(model, optimizer, batch(rows, length))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert use.gradients == trained
    assert 2 * trained <= use.optimizer <= 2 * trained + 8 * len(before)
    assert use.weights >= sum(p.nbytes for p in model.parameters())
    assert use.peak == pytest.approx(measure(model, optimizer, batch(rows, length)), rel=0.1)


def saved_bytes(model: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """What autograd keeps after a forward pass, counted by its hooks."""
    kept: dict[int, Any] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_are_what_autograd_keeps() -> None:
    model = attach(tiny_llama(), Full())
    use = predict(model, optimizer, batch(4, 48))
    assert use.activations == pytest.approx(saved_bytes(model, batch(4, 48)), rel=0.05)


def test_the_command_predicts_and_says_how_wrong_it_was(
    tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "toy.yaml"
    content = {
        "base": {"path": str(tiny_base)},
        "data": {"train": str(toy_file), "split": {}},
        "method": {"kind": "lora"},
        "optim": {"epochs": 1, "batch": 8},
        "eval": {"generate": {"rows": 4, "max_new_tokens": 4}},
        "output": str(tmp_path / "runs"),
    }
    path.write_text(yaml.safe_dump(content))

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    account = json.loads(run("memory", path, "--measure", "--json"))
    assert account["rows"] == 8
    assert abs(account["error_percent"]) < 10
    assert "activations" in run("memory", path, "--set", "optim.batch=4")

    trained = Path(json.loads(run("train", path, "--json"))["run"])
    cost = json.loads((trained / "report.json").read_text())["cost"]
    assert abs(cost["memory"]["error_percent"]) < 10
    again = Path(json.loads(run("train", path, "--set", "method.r=2", "--json"))["run"])
    listed = json.loads(run("runs", "list", tmp_path / "runs", "--json"))
    assert [entry["run"] for entry in listed] == [str(trained), str(again)]
    assert listed[0]["adapter"] is not None
    assert "lora" in run("runs", "list", tmp_path / "runs")
    difference = json.loads(run("runs", "diff", trained, again, "--json"))
    assert difference["method.r"] == [8, 2]
    assert "optim.lr" not in difference
    assert json.loads(run("runs", "show", trained))["report"]["schema"] == "polygraft.report/1"
    result = CliRunner().invoke(app, ["runs", "show", str(tmp_path)])
    assert (result.exit_code, "is no run" in result.stderr) == (2, True)
