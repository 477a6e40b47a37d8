"""The tuning of kernels: what is tried, what is taken, and a rehearsal that serving can read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import kernels_tune
from benchmarks.gpu.timing import Times
from benchmarks.gpu.tuning import Measured, candidates, column_buckets, load_of, select

from polygraft.kernels.fused.dispatch import Dispatcher, tiles_of
from polygraft.kernels.fused.measured_table import Entry, MeasuredTable
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, Variant

ROOT = Path(__file__).resolve().parents[2]
TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")
QKV, OUT = Bucket.forward(256, 4096, (4096, 1024, 1024)), Bucket.forward(256, 4096, (4096,))


def times(median: float, spread: float = 0.01) -> Times:
    return Times(median, median * (1 - spread), median * (1 + spread))


def form(block_m: int, variant: Variant = "producers") -> TileConfig:
    return TileConfig(block_m, 64, 64, variant=variant)


def measured(
    bucket: Bucket, config: TileConfig, median: float, *, is_reckoned: bool = False
) -> Measured:
    return Measured(bucket, 256, config, times(median), is_reckoned)


def taken(*forms: Measured) -> dict[Bucket, TileConfig]:
    return {entry.bucket: entry.tiles for entry in select(forms)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (16, 64), (256, 256), (2048, 16)])
def test_every_variant_is_tried_with_its_reckoned_tiles_first(
    target: Target, rows: int, columns: int
) -> None:
    bucket = Bucket.forward(rows, 4096, (4096, 1024, 1024))
    found = candidates(bucket, columns, target)
    assert len(found) == len(set(found))
    wanted: Sequence[Variant] = ("base", "inline")
    if columns:
        wanted = ("inline", "producers", "pair", "hybrid")
    assert {config.variant for config in found} == set(wanted)
    for variant in wanted:
        assert tiles_of(variant, bucket, columns, target) in found
    for config in found:
        assert 4096 % (config.split_k * config.block_k) == 0


@pytest.mark.parametrize("rows", [1, 16, 256, 4096])
def test_a_step_has_the_columns_of_its_bucket_in_every_tile(rows: int) -> None:
    buckets = column_buckets(rows, 128)
    assert buckets[:4] == [0, 16, 64, 256]
    for columns in buckets:
        load = load_of(rows, 128, columns)
        assert load is not None
        tiles = max(rows // 128, 1)
        assert load.pool_rows == tiles * columns
        assert [s.end - s.start for s in load.segments()] == [
            rows // max(load.adapters, 1)
        ] * load.adapters


def test_a_bucket_that_no_step_can_have_is_left_out() -> None:
    assert load_of(1, 16, 1024) is None  # of rank 1024


def test_the_fastest_form_of_a_bucket_is_taken() -> None:
    forms = [measured(QKV, form(64), 20.0, is_reckoned=True), measured(QKV, form(64, "pair"), 10.0)]
    assert taken(*forms) == {QKV: form(64, "pair")}


@pytest.mark.parametrize(("median", "spread"), [(9.8, 0.001), (9.0, 0.2)])
def test_the_reckoned_form_stays_where_the_other_is_not_clearly_faster(
    median: float, spread: float
) -> None:
    other = Measured(QKV, 256, form(64, "pair"), times(median, spread), is_reckoned=False)
    assert taken(measured(QKV, form(64), 10.0, is_reckoned=True), other) == {QKV: form(64)}


def test_all_sites_of_a_row_bucket_take_tiles_of_one_height() -> None:
    forms = [
        measured(QKV, form(64), 10.0),
        measured(QKV, form(128), 11.0),
        measured(OUT, form(64), 20.0),
        measured(OUT, form(128), 15.0),
    ]
    assert taken(*forms) == {QKV: form(128), OUT: form(128)}
    # A height that one of them cannot have at all is not taken, however fast it is.
    assert taken(*forms[:3]) == {QKV: form(64), OUT: form(64)}


def test_a_rehearsal_writes_a_table_that_serving_can_read(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    program = [sys.executable, "-P", str(ROOT / "benchmarks/kernels_tune.py"), "--rehearse"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [*program, "--out", str(out), "--rows", "1"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "WRONG" not in run.stderr
    assert "failed" not in run.stderr
    table = MeasuredTable.from_json(out.read_text())
    assert {entry.bucket.rows for entry in table.entries} == {1}
    assert {entry.columns for entry in table.entries} == {0, 16, 64, 256}
    dispatcher = Dispatcher("sm_90", table)
    for entry in table.entries:
        assert dispatcher.choice(entry.bucket, entry.columns) == entry.tiles
        assert dispatcher.block_rows(entry.bucket.rows) == entry.tiles.block_m


def test_a_new_measurement_replaces_its_row_buckets_and_keeps_the_others(tmp_path: Path) -> None:
    out = tmp_path / "measured" / "table.json"
    small = Bucket.forward(16, 4096, (4096,))
    old = [
        Entry(OUT, 16, form(64), 9.0),
        Entry(OUT, 64, form(64), 9.0),
        Entry(small, 16, form(16), 5.0),
    ]
    new = [Entry(OUT, 16, form(128), 8.0)]
    for entries in (old, new):
        kernels_tune.write(MeasuredTable("H", "3.7", entries), out)
    # What was measured with tiles of another height does not go together with the new one.
    assert list(MeasuredTable.from_json(out.read_text()).entries) == [old[2], new[0]]
