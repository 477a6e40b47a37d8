"""EWC: the Fisher information by hand, the penalty by hand, and whole runs with it."""

from collections.abc import Callable
from pathlib import Path

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
from polygraft.trainer.progress import Silent
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
    assert float(model.weighed_distance().detach()) == 0.0
    moved = torch.randn(fisher.shape)
    with torch.no_grad():
        dict(model.model.named_parameters())[name].add_(moved)
    wanted = (fisher.double() * moved.double() ** 2).sum()
    found = model.weighed_distance()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4)
    found.backward()
    gradient = dict(model.model.named_parameters())[name].grad
    assert gradient is not None
    assert torch.allclose(gradient, 2 * fisher * moved, rtol=1e-3, atol=1e-4)


class Notes(Silent):
    """Keeps what a run said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def test_a_run_with_ewc_says_by_what_it_weighs_and_names_no_private_path(
    make_config: MakeConfig, toy_file: Path
) -> None:
    def weights(ewc: float, notes: Notes) -> bytes:
        method = {"kind": "selective", "layers": [-1], "ewc": ewc}
        fisher = {"data": str(toy_file), "cap": 20}
        config = make_config(
            method={**method, "fisher": fisher}, optim={"epochs": 1, "batch": 32, "lr": 0.01}
        )
        made = train(config, notes, score_test=False)
        assert str(toy_file) not in (made.directory / "adapter/adapter_config.json").read_text()
        return (made.directory / "adapter" / "adapter_model.safetensors").read_bytes()

    notes = Notes()
    assert weights(3.0, notes) != weights(0.0, Notes())
    assert "weights weighed by 20 held-out rows of toy.jsonl" in notes.said


def test_a_flat_fisher_is_l2_sp() -> None:
    model = changed(Full())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.weigh({name: torch.ones_like(t) for name, t in model.trained_state().items()})
    weighed, plain = model.weighed_distance().detach(), model.distance().detach()
    assert float(weighed) == pytest.approx(float(plain), rel=1e-6)
    assert isinstance(model, nn.Module)


def test_a_mistake_in_fisher_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(RecipeError, match=r"method\.fisher: give either task"):
        make_config(method={"kind": "full", "ewc": 1, "fisher": {}})
