"""The ways of LoRA on a CPU: each is what the definition says, and the table names the best."""

from __future__ import annotations

import pytest
import torch
from benchmarks import cpu_lora
from benchmarks.cpu_lora_ways import BASE, WAYS, LoraCase
from benchmarks.options import Options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "adapters"), [(8, 4), (7, 3), (5, 1)])
@pytest.mark.parametrize("slices", [(48,), (32, 16, 24)])
def test_every_way_adds_the_same(
    slices: tuple[int, ...], rows: int, adapters: int, dtype: torch.dtype
) -> None:
    case = LoraCase.make(40, slices, 8, rows, adapters, dtype=dtype, seed=3)
    for name, make in WAYS.items():
        if name != BASE:
            cpu_lora.check(name, case, make(case), cpu_lora.BOUNDS[dtype])


def test_a_wrong_way_is_not_timed() -> None:
    case = LoraCase.make(40, (48,), 8, 6, 2, dtype=torch.float32, seed=0)
    with pytest.raises(AssertionError, match="lazy is wrong"):
        cpu_lora.check("lazy", case, lambda y: y, 1e-5)


def test_the_table_compares_with_the_best_of_the_others() -> None:
    shapes, rounds = cpu_lora.PRESETS["smoke"]
    options = Options("smoke", None, "float32", 1, 0)
    grid = cpu_lora.grid_of(
        options, {shape: cpu_lora.measure(shape, torch.float32, rounds, 0, 1) for shape in shapes}
    )
    rows = dict(grid.rows)
    assert list(rows) == [*WAYS, "native / best of the others"]
    for column in range(len(shapes)):
        others = [v[column] for n, v in rows.items() if n in WAYS and n not in ("native", BASE)]
        ratio = rows["native"][column] / min(others)
        assert rows["native / best of the others"][column] == pytest.approx(ratio)
