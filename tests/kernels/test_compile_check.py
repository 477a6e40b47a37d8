"""The check of compiled kernels finds what it must, and the documented table is of what is shipped.

`make check-kernels` compiles the shipped forms themselves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not made for this platform")

from polygraft.kernels.fused import compile_check, compiled_record
from polygraft.kernels.fused.compile_check import Compiled, Form
from polygraft.kernels.fused.compiled_record import fingerprint
from polygraft.kernels.fused.dispatch import Dispatcher, tiles_of
from polygraft.kernels.fused.tiles import Bucket, Stage, Target, TileConfig

QKV = (4096, 1024, 1024)
GOOD = Compiled(
    registers=128,
    spills=0,
    shared=90 * 1024,
    matrix="wgmma + mma",
    async_copies=4,
    narrow_loads=0,
    float_atomics=0,
    serialized=False,
    instructions=1000,
)


def form(target: Target, config: TileConfig, rows: int = 1) -> Form:
    return Form(target, "qkv", Bucket.forward(rows, 4096, QKV), config)


def found_in(form: Form) -> str:
    return "; ".join(compile_check.faults(form, compile_check.compile_form(form)))


def test_a_form_that_spills_fails() -> None:
    config = TileConfig(128, 256, 64, num_warps=8, num_stages=3)
    assert "spills registers" in found_in(form("sm_80", config, 2048))


def test_a_form_whose_matrix_products_cannot_overlap_fails() -> None:
    config = TileConfig(16, 64, 128, swap=True, num_stages=4)
    assert "serialized" in found_in(form("sm_90", config))


def test_a_form_that_does_not_fit_the_chip_fails() -> None:
    config = TileConfig(128, 128, 128, num_warps=8, num_stages=3)
    assert "more than the chip's 65536" in found_in(form("gfx942", config, 2048))


@pytest.mark.parametrize(("columns", "stage"), [(16, None), (256, Stage.FUSED)])
def test_a_shipped_form_passes(columns: int, stage: Stage | None) -> None:
    bucket = Bucket.forward(1, 4096, QKV)
    config = Dispatcher("sm_90").choice(bucket, columns)
    assert found_in(Form("sm_90", "qkv", bucket, config, stage)) == ""


def test_kernel_p_that_spills_fails() -> None:
    bucket = Bucket.forward(2048, 4096, QKV)
    config = tiles_of("producers", bucket, 256, "sm_80")
    config = replace(config, block_n=256, num_warps=4)
    assert "spills registers" in found_in(Form("sm_80", "qkv", bucket, config, Stage.FUSED))


@pytest.mark.parametrize(
    ("stage", "change", "fault"),
    [
        (Stage.FUSED, {}, "does not wait for its producers: 0 acquires, 0 releases"),
        (Stage.FUSED, {"acquires": 1, "releases": 1}, ""),
        (None, {"acquires": 1}, "1 acquires and 0 releases, but nothing to wait for"),
        (Stage.SHRINK, {"releases": 1}, "0 acquires and 1 releases, but nothing to wait for"),
        (Stage.SHRINK, {"dependent_launches": 1}, "1 instructions of dependent launches"),
        (Stage.EXPAND, {"async_copies": 0}, ""),
    ],
)
def test_who_waits_must_and_who_does_not_must_not(
    stage: Stage | None, change: dict[str, int], fault: str
) -> None:
    one = replace(form("sm_90", TileConfig(16, 64, 64, swap=True)), stage=stage)
    found = "; ".join(compile_check.faults(one, replace(GOOD, **change)))
    assert fault in found
    assert bool(fault) == bool(found)


def test_the_pair_is_linked_on_hopper_only() -> None:
    config = TileConfig(16, 64, 64, variant="pair")
    linked = replace(form("sm_90", config), stage=Stage.SHRINK)
    assert "has 0 instructions of dependent launches" in "; ".join(
        compile_check.faults(linked, GOOD)
    )
    assert not replace(linked, target="sm_80").is_dependent


def test_a_record_counts_only_for_what_it_was_made_of(tmp_path: Path) -> None:
    one = form("sm_90", TileConfig(16, 64, 64))
    path = tmp_path / "record.json"
    compiled_record.write({fingerprint(one): GOOD}, path)
    assert compiled_record.read(path) == {fingerprint(one): GOOD}
    assert fingerprint(replace(one, config=TileConfig(16, 64, 32))) != fingerprint(one)
    assert compiled_record.read(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"spills": 3}, "spills registers (3)"),
        ({"shared": 250_000}, "more than the chip's 232448"),
        ({"matrix": "mma"}, "does not use wgmma"),
        ({"async_copies": 0}, "copies nothing asynchronously"),
        ({"narrow_loads": 2}, "2 loads of two bytes"),
        ({"float_atomics": 1}, "1 atomics of floats"),
        ({"serialized": True}, "serialized"),
        ({"shared": 120 * 1024}, "no room for a second program"),
    ],
)
def test_each_fault_is_named(change: dict[str, int], fault: str) -> None:
    config = TileConfig(16, 64, 64, swap=True)
    found = "; ".join(compile_check.faults(form("sm_90", config), replace(GOOD, **change)))
    assert fault in found
    assert bool(fault) == bool(found)


def test_the_documented_table_names_the_shipped_forms(repository_root: Path) -> None:
    page = (repository_root / "docs/kernels.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| sm_", "| gfx"))]
    labels = [compile_check.label(form) for form in compile_check.shipped_forms()]
    assert [row for row in rows if not row.startswith(tuple(labels))] == []
    assert len(rows) == len(labels) == len(set(labels))


def test_every_shipped_form_is_on_record() -> None:
    """`python -m polygraft.kernels.fused.compile_check --docs docs/kernels.md` writes it."""
    known = compiled_record.read()
    missing = [f for f in compile_check.shipped_forms() if fingerprint(f) not in known]
    assert missing == []
