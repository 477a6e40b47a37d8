"""What a finished run writes beside its adapter: manifest, report, predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polygraft.adapters.manifest import Manifest, ScoreRecord, canonical_json
from polygraft.trainer.data import Example
from polygraft.trainer.evaluation import Evaluation
from polygraft.trainer.forgetting.record import Forgetting
from polygraft.trainer.forms import Form
from polygraft.trainer.memory_account import MemoryAccount
from polygraft.trainer.prepare import Prepared
from polygraft.trainer.push.witness import SHA256_KEY, witness_sha256
from polygraft.trainer.run_directory import RunDirectory
from polygraft.trainer.saved import build_manifest
from polygraft.trainer.scoring import Subject, compare, predictions
from polygraft.trainer.source import build_recipe


def write_manifest(
    prepared: Prepared,
    directory: RunDirectory,
    subjects: Sequence[Subject],
    seconds: float,
    *,
    num_probes: int | None,
    trained_parameters: int,
    parent: str | None = None,
) -> Manifest:
    """The manifest in canonical form; its sha256 is the identity of the version."""
    base, source = prepared.base, prepared.source
    manifest = build_manifest(
        directory.work / "adapter",
        config=prepared.config,
        base=base,
        geometry=prepared.geometry,
        recipe=None
        if source.form is Form.MESSAGES  # requests send messages, which the base's template takes
        else build_recipe(source.prompt, base.tokenizer, base.configured_eos),
        splits=source.splits,
        mixed=prepared.mixed,
        group_key=source.group_key,
        scores=_score_records(prepared, subjects),
        num_probes=num_probes,
        trained_parameters=trained_parameters,
        parent=parent,
        minutes=seconds / 60,
        evidence={SHA256_KEY: sha256} if (sha256 := witness_sha256(directory.work)) else {},
    )
    (directory.work / "manifest.json").write_bytes(canonical_json(manifest))
    return manifest


def write_report(
    prepared: Prepared,
    directory: RunDirectory,
    manifest: Manifest,
    best: Evaluation,
    subjects: Sequence[Subject],
    seconds: float,
    memory: MemoryAccount | None,
    forgetting: Forgetting | None = None,
) -> None:
    """report.json for programs, predictions.test.jsonl for eyes."""
    source, method = prepared.source, manifest.method
    report = {
        "schema": "polygraft.report/1",
        "name": prepared.config.name,
        "digest": manifest.digest,
        "base": prepared.base.name,
        "method": prepared.config.method.kind,
        "metric": prepared.config.eval.metric,
        "warnings": list(prepared.warnings),
        "data": {
            record.split: {"rows": record.rows, "sha256": record.sha256} for record in manifest.data
        },
        "best": {
            "step": best.step,
            "validation_loss": round(best.loss, 5),
            best.metric: round(best.value, 2),
        },
        **_tested(subjects, source.splits.test),
        "cost": {
            "trained_parameters": method.trainable_params if method else None,
            "adapter_bytes": manifest.size_bytes,
            "training_seconds": round(seconds, 1),
            "memory": memory.as_json() if memory else None,
        },
    }
    if forgetting is not None:
        report["forgetting"] = forgetting.as_json()
    directory.write_json("report.json", report)
    if subjects:
        directory.write_lines("predictions.test.jsonl", predictions(source.splits.test, subjects))


def add_scores(
    run: Path,
    subjects: Sequence[Subject],
    rows: Sequence[Example],
    forgetting: Forgetting | None = None,
) -> None:
    """Put what was measured after a run, as through a server, into its report and predictions.

    `subjects` begin with the base and end with the adapter.
    """
    directory = RunDirectory(run, run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    report |= _tested(subjects, rows)
    if forgetting is not None:
        report["forgetting"] = forgetting.as_json()
    directory.write_json("report.json", report)
    directory.write_lines("predictions.test.jsonl", predictions(rows, subjects))


def _tested(subjects: Sequence[Subject], rows: Sequence[Example]) -> dict[str, Any]:
    differences = compare(subjects, [row.group for row in rows]) if subjects else {}
    return {
        "test": [subject.as_json() for subject in subjects],
        "difference": {
            name: {"value": round(score.value or 0.0, 2), "ci95": score.interval}
            for name, score in differences.items()
        },
    }


def _score_records(prepared: Prepared, subjects: Sequence[Subject]) -> list[ScoreRecord]:
    data_sha256 = prepared.source.splits.hashes()["test"]
    return [
        ScoreRecord(
            subject=subject.name,
            metric=score.metric,
            value=f"{score.value:.2f}",
            rows=subject.rows,
            split="test",
            data_sha256=data_sha256,
            ci95=None
            if score.interval is None
            else (f"{score.interval[0]:.2f}", f"{score.interval[1]:.2f}"),
            signature=score.signature,
            decoding=f"greedy|max:{prepared.max_new_tokens}",
        )
        for subject in subjects
        for score in subject.scores
        if score.value is not None and not score.is_detail
    ]
