"""The smoke preset finds what it shares, and nothing of another adapter."""

from pathlib import Path

import pytest
from benchmark_support.programs import run_program
from benchmarks.figures import Figures
from benchmarks.options import Options
from benchmarks.prefix_cache import PRESETS, Measured, Probe, figures_of


def test_the_gain_is_the_ratio_of_medians() -> None:
    hits = [Probe(10, 64), Probe(20, 48), Probe(30, 64)]
    measured = Measured([Probe(100, 0)], hits, [Probe(90, 0)])
    options = Options("smoke", None, "float32", 1, 0)
    figures = {f.name: f for f in figures_of(PRESETS["smoke"], options, measured).figures}
    assert figures["computed / found"].value == 5
    assert figures["tokens found, fewest"].verdict == "no"


@pytest.mark.slow
def test_the_smoke_preset_shares_a_prefix_with_the_same_adapter_only(tmp_path: Path) -> None:
    made = tmp_path / "prefix.json"
    run_program("prefix_cache.py", "--preset", "smoke", "--json", made)
    figures = {f.name: f for f in Figures.from_json(made.read_text()).figures}
    assert figures["tokens found, fewest"].verdict == "yes"
    assert figures["tokens another adapter found"].value == 0
