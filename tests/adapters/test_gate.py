"""What the gate lets in: a better version, on rows that it has not seen, and no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from adapter_support.press import Press

from polygraft.adapters.errors import AdapterCorrupt, GateRefused, InvalidRequest, NotFound
from polygraft.adapters.gate import Contest, Scored, judge, refusal_of
from polygraft.adapters.gate_policy import GatePolicy
from polygraft.adapters.gate_verdict import GateVerdict
from polygraft.adapters.manifest import DataRecord, Manifest
from polygraft.adapters.scores import ScoreBook, ScoreSheet
from polygraft.adapters.stores.protocol import Store

A, B = (f"sha256:{letter * 64}" for letter in "ab")
BASE, DATA = "f" * 64, "d" * 64
ROWS = 200
NOISE = np.random.default_rng(3).normal(0, 5, ROWS)


def sheet(subject: str | None, numbers: Any, /, **changes: Any) -> ScoreSheet:
    fields: dict[str, Any] = {
        "schema": "polygraft.score/1",
        "version": subject,
        "base_weights_sha256": BASE,
        "metric": "rougeL",
        "signature": "rougeL|f1",
        "data_sha256": DATA,
        "decoding": "greedy|max:8",
        "values": tuple(f"{value:.6f}" for value in numbers),
        "stopped": (True,) * len(numbers),
        "output_tokens": (10,) * len(numbers),
        "seconds": ("0.100000",) * len(numbers),
    }
    return ScoreSheet.model_validate(fields | changes)


@pytest.fixture
def manifest(press: Press) -> Manifest:
    return press.make(1)[0]


def contest(manifest: Manifest, delta: float = 5.0, **changes: Any) -> Contest:
    """A candidate that is `delta` points better than the current version, the base far behind."""
    candidate = changes.pop("candidate", sheet(B, 60 + NOISE + delta))
    current = changes.pop("current", sheet(A, 60 + NOISE))
    served = None if current is None else Scored("s", current)
    made = Contest(
        candidate_digest=B,
        current_digest=A,
        manifest=manifest,
        verified=True,
        base_weights_sha256=BASE,
        candidate=Scored("c", candidate),
        current=served,
        base=Scored("b", sheet(None, 20 + NOISE)),
    )
    return replace(made, **changes)


def failed(verdict: GateVerdict) -> list[str]:
    return [check.name for check in verdict.failures]


def test_a_better_version_passes(manifest: Manifest) -> None:
    verdict = judge(GatePolicy(), contest(manifest))
    assert verdict.passed, verdict.failures
    assert verdict.delta == pytest.approx(5.0)
    assert (verdict.lower, verdict.upper) == pytest.approx((5.0, 5.0))  # paired: no noise is left
    assert (verdict.rows, verdict.against) == (ROWS, "current")
    assert GateVerdict.read(verdict.as_json()) == verdict


@pytest.mark.parametrize("delta", [0.0, -3.0])
def test_a_tie_keeps_the_version_that_is_served(manifest: Manifest, delta: float) -> None:
    verdict = judge(GatePolicy(), contest(manifest, delta))
    assert "difference" in failed(verdict)


def test_a_gain_that_may_be_chance_is_refused(manifest: Manifest) -> None:
    noisy = sheet(B, 60.2 + NOISE[::-1])
    current = sheet(A, 60 + NOISE)
    verdict = judge(GatePolicy(), contest(manifest, candidate=noisy, current=current))
    assert verdict.delta > 0
    assert failed(verdict) == ["95% interval"]
    half = 1.96 * np.std(NOISE[::-1] - NOISE) / ROWS**0.5
    assert verdict.lower == pytest.approx(verdict.delta - half, abs=0.1 * half)
    assert judge(GatePolicy(tolerance=5.0), contest(manifest, candidate=noisy)).passed


@pytest.mark.parametrize(
    ("policy", "changes", "name"),
    [
        ({}, {"stopped": (False,) * 10 + (True,) * (ROWS - 10)}, "stop rate"),
        ({}, {"output_tokens": (16,) * ROWS}, "p95 tokens"),
        ({}, {"seconds": ("0.300000",) * ROWS}, "p95 seconds"),
        ({"min_rows": 201}, {}, "rows"),
        ({"min_delta": 5.1}, {}, "difference"),
        ({"metric": "exact_match"}, {}, "metric"),
        ({"data_sha256": "e" * 64}, {}, "set"),
    ],
)
def test_each_guard_refuses_alone(
    manifest: Manifest, policy: dict[str, Any], changes: dict[str, Any], name: str
) -> None:
    candidate = sheet(B, 65 + NOISE, **changes)
    assert failed(judge(GatePolicy(**policy), contest(manifest, candidate=candidate))) == [name]


def test_a_version_must_beat_the_base_be_verified_and_not_have_seen_the_rows(
    manifest: Manifest,
) -> None:
    strong = Scored("b", sheet(None, 70 + NOISE))
    assert failed(judge(GatePolicy(), contest(manifest, base=strong))) == ["base score"]
    assert failed(judge(GatePolicy(), contest(manifest, base=None))) == ["base score"]
    assert judge(GatePolicy(beats_base=False), contest(manifest, base=None)).passed
    assert failed(judge(GatePolicy(), contest(manifest, verified=False))) == ["base model"]
    for split, expected in (("train", ["seen"]), ("validation", ["seen"]), ("test", [])):
        data = (DataRecord(split=split, rows=ROWS, sha256=DATA),)
        seen = manifest.model_copy(update={"data": data})
        assert failed(judge(GatePolicy(), contest(seen))) == expected


def test_where_nothing_is_served_the_base_must_be_beaten(manifest: Manifest) -> None:
    verdict = judge(GatePolicy(), contest(manifest, current=None, current_digest=""))
    assert verdict.passed
    assert (verdict.against, verdict.delta) == ("base", pytest.approx(45.0))
    with pytest.raises(InvalidRequest, match="nothing to compare"):
        judge(GatePolicy(), contest(manifest, current=None, current_digest="", base=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "sha256:" + "9" * 64},
        {"base_weights_sha256": "0" * 64},
        {"metric": "rouge1"},
        {"signature": "rougeL|other"},
        {"data_sha256": "0" * 64},
        {"decoding": "greedy|max:9"},
        {"groups": tuple(range(ROWS))},
    ],
)
def test_scores_of_something_else_are_not_compared(
    manifest: Manifest, changes: dict[str, Any]
) -> None:
    other = sheet(A, 60 + NOISE, **changes)
    with pytest.raises(InvalidRequest, match="the scores do not compare") as caught:
        judge(GatePolicy(), contest(manifest, current=other))
    assert caught.value.item == "gate.current_score"


def test_a_refusal_says_every_check(manifest: Manifest) -> None:
    error = refusal_of(judge(GatePolicy(), contest(manifest, -3.0)))
    assert isinstance(error, GateRefused)
    assert "difference: -3.00 (needed: above 0)" in str(error)
    rows = [value.split("|") for key, value in error.metadata.items() if key.startswith("check_")]
    assert ["difference", "-3.00", "above 0", "failed"] in rows
    assert ["rows", "200", "at least 100", "passed"] in rows


@pytest.mark.parametrize("field", ["min_delta", "tolerance", "max_latency_ratio"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_policies_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match="out of range"):
        replace(GatePolicy(), **{field: value}).check()


def test_scores_are_kept_by_their_content(store: Store) -> None:
    book, kept = ScoreBook(store), sheet(A, [1.0, 2.5])
    score_id = book.put(kept)
    assert book.put(kept) == score_id
    assert book.get(score_id) == kept
    assert book.get(score_id).mean == 1.75
    with pytest.raises(NotFound):
        book.get("sha256:" + "0" * 64)
    with pytest.raises(InvalidRequest):
        book.get("../../etc/passwd")


def test_a_score_that_rotted_is_found(store: Store) -> None:
    book = ScoreBook(store)
    score_id = book.put(sheet(A, [1.0]))
    key = f"scores/sha256/{score_id.removeprefix('sha256:')}.json"
    store.delete(key)
    store.create(key, b"{}")
    with pytest.raises(AdapterCorrupt, match="has changed"):
        book.get(score_id)


@pytest.mark.parametrize(
    "changes", [{"stopped": (True,)}, {"groups": (0,)}, {"values": ("nan", "1")}, {"values": ()}]
)
def test_sheets_with_holes_are_no_sheets(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        sheet(A, [1.0, 2.0], **changes)
