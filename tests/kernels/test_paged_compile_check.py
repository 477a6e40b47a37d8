"""The check of compiled attention kernels finds what it must; the documented table is what ships.

`make check-kernels` compiles the shipped forms themselves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not made for this platform")

from polygraft.kernels.fused.compile_check import Compiled
from polygraft.kernels.paged import compile_check
from polygraft.kernels.paged.compile_check import LAYERS, PagedForm
from polygraft.kernels.paged.tiles import PagedConfig

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


def test_a_form_that_spills_fails() -> None:
    form = PagedForm("sm_80", *LAYERS[2], PagedConfig(128, 64, num_warps=4))
    assert "spills registers" in "; ".join(
        compile_check.faults(form, compile_check.compile_form(form))
    )


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
    ],
)
def test_each_fault_is_named(change: dict[str, int], fault: str) -> None:
    form = PagedForm("sm_90", *LAYERS[0], PagedConfig(64, 64))
    found = "; ".join(compile_check.faults(form, replace(GOOD, **change)))
    assert fault in found
    assert bool(fault) == bool(found)


def test_the_documented_table_names_the_shipped_forms(repository_root: Path) -> None:
    page = (repository_root / "docs/gpu.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| sm_", "| gfx"))]
    labels = [compile_check.label(form) for form in compile_check.shipped_forms()]
    assert [row for row in rows if not row.startswith(tuple(labels))] == []
    assert len(rows) == len(labels)
