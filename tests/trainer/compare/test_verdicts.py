"""Targets are judged by the figures, and a missing figure is no success."""

from typing import Any

import pytest

from polygraft.trainer.compare.recipe import Arm, Target
from polygraft.trainer.compare.result import ArmResult
from polygraft.trainer.compare.verdicts import judge, not_to_be_told_apart


def arm(
    name: str, rows: list[float], *, lost: list[int] | None = None, sha: str = "x"
) -> ArmResult:
    """One seed of one task; `lost`: by old row, 1 where it was known before only."""
    record: dict[str, Any] = {
        "tasks": {
            "dsum": {
                "metric": "rougeL",
                "rows_sha256": sha,
                "groups": list(range(len(rows))),
                "rows": {"rougeL": rows, "exact_match": [100.0 * (r == 100) for r in rows]},
                "values": {},
            }
        },
        "axes": {},
        "cost": {},
    }
    if lost is not None:
        attached = [0.0 if gone else 100.0 for gone in lost]
        record["forgetting"] = {
            "general": "mix",
            "rows": {"before": [100.0] * len(lost), "attached": attached},
            "fallen": [],
            "detached_logits_bit_equal": True,
        }
    return ArmResult(name, Arm(), [record], [])


RESULTS = {
    "base": arm("base", [20.0] * 40),
    "lora": arm("lora", [80.0, 100.0] * 20, lost=[0] * 38 + [1] * 2),
    "full": arm("full", [90.0, 100.0] * 20, lost=[0] * 20 + [1] * 20),
    "same": arm("same", [80.0, 100.0] * 19 + [100.0, 80.0]),
    "other": arm("other", [50.0] * 40, sha="y"),
    "failed": ArmResult("failed", Arm(), [], ["out of memory"]),
}


@pytest.mark.parametrize(
    ("target", "reached", "figure"),
    [
        ({"of": "lora", "at_least": 85}, True, "90.0"),
        ({"of": "lora", "at_least": 91}, False, "90.0"),
        ({"of": "lora", "metric": "exact_match", "at_least": 40}, True, "50.0"),
        ({"of": "base", "at_most": 40}, True, "20.0"),
        ({"of": "lora", "over": "base", "at_least": 60}, True, "90.0 - 20.0 = 70.0"),
        ({"of": "lora", "over": "base", "shown": True}, True, "70.0"),
        ({"of": "lora", "over": "same", "shown": True}, False, "0.0"),
        ({"of": "lora", "over": "other", "at_least": 1}, False, "not measured on the same rows"),
        ({"of": "full", "metric": "old_skills_lost", "at_least": 15}, True, "50.0"),
        (
            {"of": "lora", "share_of": "full", "metric": "old_skills_lost", "at_most": 50},
            True,
            "10 %",
        ),
        ({"of": "lora", "metric": "detached_bit_equal", "at_least": 100}, True, "100.0"),
        (
            {"of": "base", "metric": "detached_bit_equal", "at_least": 100},
            False,
            "base has no such",
        ),
        ({"of": "failed", "at_least": 1}, False, "failed has no such figure"),
        ({"spread": ["lora", "full", "base"], "shown": True}, True, "full over base"),
        ({"spread": ["lora", "same"], "shown": True}, False, "lora over"),
        ({"of": "lora", "task": "mean", "at_least": 85}, True, "90.0"),
    ],
)
def test_a_target_is_reached_by_its_figure(target: Any, reached: bool, figure: str) -> None:
    verdict = judge(Target(say="it holds", **target), RESULTS)
    assert (verdict.reached, figure in verdict.figure) == (reached, True), verdict.figure


def test_equals_of_the_best_are_named() -> None:
    known = {name: rows for name in ("base", "lora", "same") if (rows := RESULTS[name].rows())}
    assert not_to_be_told_apart(known) == ["same"]
    assert not_to_be_told_apart({"full": known["lora"], "base": known["base"]}) == []
