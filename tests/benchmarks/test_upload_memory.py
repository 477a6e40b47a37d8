"""The smoke preset sends all bytes and measures both sides."""

from pathlib import Path

import pytest
from benchmark_support.programs import run_program
from benchmarks.figures import Figures
from benchmarks.upload_memory import figures_of


def test_a_growth_beyond_the_bound_is_told() -> None:
    figures = {f.name: f for f in figures_of(500, {"slow": (5.0, 65.0, 3.0)}).figures}
    assert figures["slow client, growth of the client"].verdict == "no"
    assert figures["slow client, growth of the server"].verdict == "yes"
    assert figures["slow client, rate with hashing on both sides"].value == 100


@pytest.mark.slow
def test_the_smoke_preset_measures_both_clients(tmp_path: Path) -> None:
    made = tmp_path / "upload.json"
    run_program("upload_memory.py", "--preset", "smoke", "--json", made)
    assert len(Figures.from_json(made.read_text()).figures) == 6
