"""The gate: from rows in a file to an alias that moved or did not, with answers that are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_support.service import DSUM_RECIPE, Service, service_in_thread
from tiny_models import EOS
from typer.testing import CliRunner, Result

from polygraft.cli import app
from polygraft.client import Client, GateRefused, InvalidRequest
from polygraft.commands.failure import ExitCode
from polygraft.server.engine.messages import EngineRequest

ROWS = 120


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with service_in_thread(tmp_path / "store") as service:
        monkeypatch.setenv("POLYGRAFT_SERVER", service.address)
        yield service


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    lines = (json.dumps({"dialogue": f"<{n}>", "completion": wanted(n)}) for n in range(ROWS))
    path.write_text("\n".join(lines))
    return path


def wanted(row: int) -> str:
    return f"they talk about topic {row}"


def publish(service: Service, folder: Path, **right: int) -> None:
    """Versions 1, 2 ... of "dsum"; each answers so many of the rows right, the base none."""
    share = {}
    for seed, (name, count) in enumerate(right.items()):
        record = service.publish("dsum", folder / name, recipe=DSUM_RECIPE, seed=seed)
        share[record.digest] = count

    def answer(request: EngineRequest) -> Iterator[int]:
        text = service.engine.tokenizer.decode(list(request.prompt_token_ids))
        row = re.search(r"<(\d+)>", text)
        assert row is not None
        number = int(row.group(1))
        right = share[request.digests[0]] if request.digests else 0
        reply = wanted(number) if number < right else "nothing to say of it"
        yield from service.engine.tokenizer.encode(reply, add_special_tokens=False)
        yield EOS

    service.engine.token_ids = answer


def gate(*arguments: object) -> Result:
    words = ["adapters", "gate", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "120"})


def number_served(service: Service) -> int:
    live = service.server.registry.live("dsum")
    assert live is not None
    return live.number


def test_a_better_version_is_promoted_and_the_history_has_the_numbers(
    service: Service, tmp_path: Path, rows: Path
) -> None:
    publish(service, tmp_path, one=60, two=100)
    result = gate("dsum@2", "--data", rows, "--reason", "more data")
    assert result.exit_code == 0, result.output
    assert "dsum@live -> 2  (generation 2)" in result.stdout
    assert number_served(service) == 2
    with Client(service.address) as client:
        newest = client.alias_history("dsum")[0]
    verdict = newest.verdict
    assert verdict is not None
    assert (verdict.passed, verdict.rows, verdict.metric) == (True, ROWS, "rougeL")
    assert (verdict.data_name, verdict.against, newest.reason) == (
        "test.jsonl",
        "current",
        "more data",
    )
    # 40 rows more are right; a wrong answer shares no stem with the wanted one.
    assert verdict.delta == pytest.approx(100 * 40 / ROWS, abs=0.01)
    assert verdict.base == 0
    shown = CliRunner().invoke(app, ["adapters", "history", "dsum"], env={"COLUMNS": "140"})
    assert "passed: rougeL +33.33 on 120 rows" in shown.stdout


@pytest.mark.parametrize(("one", "two"), [(100, 60), (60, 60)])
def test_a_version_that_is_not_better_is_refused_with_a_table(
    service: Service, tmp_path: Path, rows: Path, one: int, two: int
) -> None:
    publish(service, tmp_path, one=one, two=two)
    result = gate("dsum@2", "--data", rows)
    assert result.exit_code == ExitCode.REFUSED
    found = f"{100 * (two - one) / ROWS:+.2f}"
    assert re.search(rf"difference +{re.escape(found)} +above 0 +refused", result.stdout)
    assert re.search(r"rows +120 +at least 100 +ok", result.stdout)
    assert "the gate refuses the version" in result.stderr
    assert number_served(service) == 1
    assert service.server.registry.alias_history("dsum", "live")[-1].generation == 1


def test_a_forced_promotion_is_recorded_with_its_reason(
    service: Service, tmp_path: Path, rows: Path
) -> None:
    publish(service, tmp_path, one=100, two=60)
    assert gate("dsum@2", "--data", rows, "--force").exit_code == ExitCode.USAGE
    result = gate("dsum@2", "--data", rows, "--force", "--reason", "licence of 1 ran out")
    assert result.exit_code == 0
    with Client(service.address) as client:
        newest = client.alias_history("dsum")[0]
    assert (newest.number, newest.forced, newest.reason) == (2, True, "licence of 1 ran out")
    assert newest.verdict is not None
    assert not newest.verdict.passed


def test_a_gate_can_be_demanded_from_now_on(service: Service, tmp_path: Path, rows: Path) -> None:
    publish(service, tmp_path, one=40, two=80, three=120)
    assert gate("dsum@2", "--data", rows, "--require").exit_code == 0
    bare = CliRunner().invoke(app, ["adapters", "promote", "dsum@3"])
    assert bare.exit_code == ExitCode.REFUSED
    assert number_served(service) == 2
    assert gate("dsum@3", "--data", rows).exit_code == 0
    assert number_served(service) == 3
    policy = service.server.registry.live("dsum").policy  # type: ignore[union-attr]
    assert policy is not None
    assert policy.required


def test_an_alias_that_does_not_exist_is_gated_against_the_base(
    service: Service, tmp_path: Path, rows: Path
) -> None:
    publish(service, tmp_path, one=60)
    result = gate("dsum@1", "--data", rows, "--alias", "checked")
    assert result.exit_code == 0, result.output
    assert "against base" in result.stdout


def test_an_alias_that_moves_meanwhile_is_judged_again(
    service: Service, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polygraft.trainer import gate as trainer_gate

    publish(service, tmp_path, one=40, two=60, three=80)
    ask, calls = trainer_gate.ask_in_turn, []

    def ask_and_move(*arguments: object) -> object:
        answers = ask(*arguments)  # type: ignore[arg-type]
        if not calls:
            service.server.registry.move_alias("dsum", "live", 3)
        calls.append(answers)
        return answers

    monkeypatch.setattr(trainer_gate, "ask_in_turn", ask_and_move)
    result = gate("dsum@2", "--data", rows)
    assert len(calls) == 2
    assert result.exit_code == ExitCode.REFUSED, "better than 1, but not than 3"
    assert number_served(service) == 3
    conflict = gate("dsum@2", "--data", rows, "--expect", "1")
    assert conflict.exit_code == ExitCode.REFUSED
    assert "is at generation 2, not 1" in conflict.stderr


def test_too_few_rows_and_bad_arguments_are_refused(
    service: Service, tmp_path: Path, rows: Path
) -> None:
    publish(service, tmp_path, one=10, two=90)
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(rows.read_text().splitlines()[:99]))
    refused = gate("dsum@2", "--data", few)
    assert refused.exit_code == ExitCode.REFUSED
    assert "rows: 99 (needed: at least 100)" in " ".join(refused.stderr.split())
    assert gate("dsum@2", "--data", tmp_path / "none.jsonl").exit_code == ExitCode.DATA
    assert gate("dsum@2", "--data", rows, "--metric", "bleu").exit_code == ExitCode.USAGE
    assert gate("dsum", "--data", rows).exit_code == ExitCode.USAGE
    already = gate("dsum@1", "--data", rows)
    assert already.exit_code == ExitCode.USAGE
    assert "already" in already.stderr
    away = gate("dsum@2", "--data", rows, "--server", "127.0.0.1:1")
    assert away.exit_code == ExitCode.UNREACHABLE


def test_scores_of_other_versions_are_no_evidence(service: Service, tmp_path: Path) -> None:
    publish(service, tmp_path, one=60, two=100)
    parts = {
        "metric": "rougeL",
        "signature": "s",
        "data_sha256": "d" * 64,
        "decoding": "greedy|max:8",
        "stopped": [True] * 100,
        "output_tokens": [4] * 100,
        "seconds": [0.1] * 100,
    }
    with Client(service.address) as client:
        one = client.record_score("dsum@1", [50.0] * 100, **parts)
        two = client.record_score("dsum@2", [60.0] * 100, **parts)
        base = client.record_score("", [10.0] * 100, **parts)
        assert (two.mean, two.rows, base.digest) == (60.0, 100, "")
        for wrong in (
            {"candidate_score": one.score_id, "current_score": two.score_id},
            {"candidate_score": two.score_id, "current_score": base.score_id},
            {"candidate_score": two.score_id},
        ):
            with pytest.raises(InvalidRequest):
                client.move_alias("dsum", "live", 2, base_score=base.score_id, **wrong)
        with pytest.raises(GateRefused, match="base score"):
            client.move_alias(
                "dsum", "live", 2, candidate_score=two.score_id, current_score=one.score_id
            )
        with pytest.raises(InvalidRequest, match="100 values"):
            client.record_score("dsum@1", [50.0] * 100, **{**parts, "stopped": [True]})
        with pytest.raises(InvalidRequest, match="is no score"):
            client.record_score("dsum@1", [float("nan")] * 100, **parts)
        moved = client.move_alias(
            "dsum",
            "live",
            2,
            candidate_score=two.score_id,
            current_score=one.score_id,
            base_score=base.score_id,
        )
        assert moved.number == 2
