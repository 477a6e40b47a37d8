"""EWC: the Fisher information by hand, the penalty by hand, and whole runs with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

from polygraft.trainer.collate import Collator
from polygraft.trainer.config import Full, RunConfig, Selective
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods import attach_unserved
from polygraft.trainer.methods.adapted import ChangedModel
from polygraft.trainer.methods.fisher import fisher_diagonal
from polygraft.trainer.run import train

MakeConfig = Callable[..., RunConfig]


def rows(count: int = 5) -> list[Encoded]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for number in range(count):
        ids = torch.randint(0, 256, (6 + number,), generator=generator).tolist()
        made.append(Encoded(Example(str(number), "g", {}, "", "here"), ids[:3], ids[3:]))
    return made


def changed(method: Full | Selective) -> ChangedModel:
    model = attach_unserved(tiny_llama(), method, seed=0)
    assert isinstance(model, ChangedModel)
    return model


@pytest.mark.parametrize("method", [Full(), Selective(layers=(-1,))])
def test_the_fisher_information_is_the_mean_squared_gradient_of_each_row(
    method: Full | Selective,
) -> None:
    found = fisher_diagonal(changed(method), rows(), Collator(0))
    model = tiny_llama().requires_grad_(True)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name in found}
    for row in rows():
        model.zero_grad()
        logits = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        start = len(row.prompt)
        said = sum(logits[start + i - 1, token] for i, token in enumerate(row.completion))
        said.backward()  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if name in sums:
                assert parameter.grad is not None
                sums[name] += parameter.grad**2 / len(rows())
    mean = torch.cat([tensor.flatten() for tensor in sums.values()]).mean()
    assert found.keys() == sums.keys()
    for name, tensor in sums.items():
        assert torch.allclose(found[name], tensor / mean, rtol=1e-3, atol=1e-5), name


def test_the_penalty_is_the_weighed_squared_distance() -> None:
    model = changed(Selective(params=r"layers\.1\.mlp\.down_proj"))
    (name,) = model.trained_state()
    fisher = torch.rand(model.trained_state()[name].shape)
    model.weigh({name: fisher})
    assert float(model.weighed_distance()) == 0.0
    moved = torch.randn(fisher.shape)
    with torch.no_grad():
        dict(model.model.named_parameters())[name].add_(moved)
    wanted = (fisher.double() * moved.double() ** 2).sum()
    assert float(model.weighed_distance()) == pytest.approx(float(wanted), rel=1e-4)
    model.weighed_distance().backward()
    gradient = dict(model.model.named_parameters())[name].grad
    assert gradient is not None
    assert torch.allclose(gradient, 2 * fisher * moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [{"kind": "full"}, {"kind": "selective", "layers": [-1]}])
def test_a_run_with_ewc_stays_closer_where_old_rows_need_it(
    make_config: MakeConfig, toy_file: Path, kind: dict[str, Any]
) -> None:
    from safetensors.torch import load_file

    def moved(ewc: float) -> float:
        fisher = {"data": str(toy_file), "cap": 20}
        method = {**kind, "ewc": ewc, "fisher": fisher}
        config = make_config(method=method, optim={"epochs": 1, "batch": 32, "lr": 0.01})
        made = train(config, score_test=False)
        assert str(toy_file) not in (made.directory / "adapter/adapter_config.json").read_text()
        tensors = load_file(made.directory / "adapter" / "adapter_model.safetensors")
        start = tiny_llama().state_dict()
        return float(sum(((t - start[n]) ** 2).sum() for n, t in tensors.items()))

    assert moved(3.0) < 0.8 * moved(0.0)


def test_ewc_with_accumulation_is_the_run_without(make_config: MakeConfig, toy_file: Path) -> None:
    from safetensors.torch import load_file

    def weights(batch: int, accumulate: int) -> dict[str, torch.Tensor]:
        method = {"kind": "full", "ewc": 1.0, "fisher": {"data": str(toy_file), "cap": 10}}
        optim = {"epochs": 1, "batch": batch, "accumulate": accumulate, "lr": 1e-3}
        rows_used = {**make_config().data.model_dump(mode="json"), "rows": 64}
        made = train(make_config(method=method, optim=optim, data=rows_used), score_test=False)
        return load_file(made.directory / "adapter" / "adapter_model.safetensors")

    # One step a run, so that the order of rows within it does not matter.
    whole, parts = weights(64, 1), weights(16, 4)
    assert all(torch.allclose(whole[n], parts[n], rtol=1e-3, atol=2e-5) for n in whole)


def test_a_flat_fisher_is_l2_sp() -> None:
    model = changed(Full())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.weigh({name: torch.ones_like(t) for name, t in model.trained_state().items()})
    assert float(model.weighed_distance()) == pytest.approx(float(model.distance()), rel=1e-6)
    assert isinstance(model, nn.Module)


def test_a_mistake_in_fisher_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(RecipeError, match=r"method\.fisher: give either task"):
        make_config(method={"kind": "full", "ewc": 1, "fisher": {}})
