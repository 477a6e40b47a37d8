"""Which checkpoint is best, when a run ends early, and what diverged means."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from polygraft.trainer.best import BestCheckpoint
from polygraft.trainer.config import RunConfig
from polygraft.trainer.divergence import check_magnitude, check_trained, largest_base_weight
from polygraft.trainer.errors import TrainingFailed
from polygraft.trainer.evaluation import Evaluation
from polygraft.trainer.run import train


def evaluation(value: float, loss: float, metric: str = "rougeL") -> Evaluation:
    return Evaluation(step=1, loss=loss, metric=metric, value=value, answers=[])


def test_the_metric_decides_and_the_loss_breaks_ties() -> None:
    assert evaluation(50, 2.0).is_better_than(None)
    assert evaluation(50, 2.0).is_better_than(evaluation(49, 1.0))
    assert evaluation(0, 1.0).is_better_than(evaluation(0, 2.0))
    assert not evaluation(100, 1.0).is_better_than(evaluation(100, 1.0))
    assert evaluation(1, 1, "loss").is_better_than(evaluation(2, 2, "loss"))


def test_the_best_tensors_come_back_even_after_a_restart(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    best = BestCheckpoint(tmp_path / "best")
    assert best.offer(model, evaluation(50, 1.0))
    kept = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    assert not best.offer(model, evaluation(40, 1.0))
    again = BestCheckpoint(tmp_path / "best")
    assert again.evaluation == evaluation(50, 1.0)
    again.restore(model)
    assert torch.equal(model.weight, kept)


def test_exploded_broken_and_unmoved_tensors_are_told_apart() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model.bias.fill_(-0.5)
    assert largest_base_weight(model) == 0.5
    check_magnitude(model, 0.5)
    for wrong in (1000.0, float("nan"), float("inf")):
        with torch.no_grad():
            model.weight[0, 0] = wrong
        with pytest.raises(TrainingFailed, match="diverged"):
            check_magnitude(model, 0.5)
    before = {"a": torch.zeros(2), "b": torch.zeros(2)}
    check_trained(before, {"a": torch.zeros(2), "b": torch.ones(2)})
    with pytest.raises(TrainingFailed, match="no trained tensor moved"):
        check_trained(before, before)
    with pytest.raises(TrainingFailed, match="1 of 2 trained tensors hold NaN"):
        check_trained(before, {"a": torch.full((2,), torch.nan), "b": torch.ones(2)})


def test_a_run_that_stops_improving_ends_early(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(
        optim={"epochs": 20, "lr": 1e-3, "batch": 32},
        eval={
            "every": 1,
            "metric": "exact_match",
            "early_stopping": {"patience": 2},
            "generate": {"rows": 2, "max_new_tokens": 2},
        },
    )
    result = train(config, score_test=False)
    lines = (result.directory / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) < 20


def test_a_run_may_be_judged_by_its_loss_alone(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(eval={"metric": "loss"}, optim={"epochs": 1, "lr": 0.01})
    result = train(config, score_test=False)
    assert result.best.metric == "loss"
    assert (result.directory / "samples.jsonl").read_text() == ""
