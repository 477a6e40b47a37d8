"""The floor has the shapes of the model; the smoke preset gives a step and its parts."""

from pathlib import Path

import pytest
import torch
from benchmark_support.programs import run_program
from benchmarks.figures import Grid
from benchmarks.floor import MatrixProducts
from benchmarks.models import MODELS, prepare_model
from safetensors.torch import load_file


def test_the_floor_multiplies_by_every_matrix_of_the_model() -> None:
    base, _ = prepare_model("tiny", 2, dtype="float32", seed=0)
    weights = load_file(base / "model.safetensors")
    matrices = sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
    floor = MatrixProducts(MODELS["tiny"], torch.float32)
    assert floor.weight_bytes == 4 * matrices  # the head is the embedding: one matrix of both
    floor.step(3)()


def test_a_grid_survives_json_and_has_a_row_per_name() -> None:
    grid = Grid("B", "how", ("", "x", "y"), (("first", (1.0, 2.5)), ("second", (150.4, 0.0))))
    assert Grid.from_json(grid.to_json()) == grid
    assert grid.to_markdown().endswith("| first | 1 | 2.5 |\n| second | 150 | 0 |\n")


@pytest.mark.slow
def test_the_parts_of_the_smoke_preset_add_up_to_the_step(tmp_path: Path) -> None:
    made = tmp_path / "profile.json"
    run_program("profile_step.py", "--preset", "smoke", "--json", made)
    rows = dict(Grid.from_json(made.read_text()).rows)
    parts = [values for name, values in rows.items() if name.startswith("- ")]
    assert {"- matrix products", "- LoRA", "- attention", "- output head"} <= rows.keys()
    sums = [sum(column) for column in zip(*parts, strict=True)]
    assert sums == pytest.approx(rows["whole step"], rel=1e-3)
    assert min(rows["floor: matrix products alone"]) > 0
