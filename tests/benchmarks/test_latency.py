"""Arrivals are what they are said to be; the smoke preset runs to a table."""

import random
from pathlib import Path
from statistics import mean, variance

import pytest
from benchmark_support.programs import run_program
from benchmarks.figures import Figures
from benchmarks.latency import PRESETS, Kind, probe_arrivals, warm_arrivals, warm_rate
from benchmarks.workload import RequestTrace

PRESET = PRESETS["issue"]
NAMES = ["a", "b", "c"]


def test_arrivals_of_a_window_are_poisson_and_the_same_for_the_same_seed() -> None:
    assert warm_arrivals(PRESET, NAMES, 4.0, 1) == warm_arrivals(PRESET, NAMES, 4.0, 1)
    counts = [len(warm_arrivals(PRESET, NAMES, 4.0, seed)) for seed in range(300)]
    expected = 4.0 * PRESET.window_seconds  # mean and variance of a Poisson variable
    assert abs(mean(counts) - expected) < 5 * (expected / 300) ** 0.5
    assert abs(variance(counts) / expected - 1) < 5 * (2 / 300) ** 0.5


def test_arrivals_are_in_order_within_their_window() -> None:
    times = [arrival.at for arrival in warm_arrivals(PRESET, NAMES, 4.0, 1)]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < PRESET.window_seconds


def test_every_second_has_one_probe_and_each_cold_adapter_is_probed_once() -> None:
    cold = [f"cold-{index}" for index in range(PRESET.window_seconds)]
    probes = probe_arrivals(PRESET, cold, 0)
    assert [probe.at for probe in probes] == [0.5 + second for second in range(20)]
    assert [probe.request.adapter for probe in probes] == cold


def test_probes_of_both_kinds_of_window_differ_in_the_adapter_alone() -> None:
    for calm, loading in zip(
        probe_arrivals(PRESET, ["warm"], 5), probe_arrivals(PRESET, ["cold"], 5), strict=True
    ):
        assert calm.request.prompt_token_ids == loading.request.prompt_token_ids
        assert calm.request.max_output_tokens == loading.request.max_output_tokens


def test_warm_requests_and_probes_together_make_the_load() -> None:
    rate = warm_rate(PRESET, capacity=400.0)
    assert rate * PRESET.output_tokens + PRESET.probe_tokens[1] == pytest.approx(0.7 * 400)


def test_the_spread_compares_windows() -> None:
    draw = random.Random(0)

    def window(gap: float) -> list[RequestTrace]:
        return [RequestTrace(draw.random(), [0.0, gap, 2 * gap], [1, 2, 3])]

    kind = Kind([window(0.1), window(0.3), window(0.2)])
    assert kind.spread() == pytest.approx(3)
    assert kind.gaps() == pytest.approx([100, 100, 300, 300, 200, 200])


@pytest.mark.slow
def test_the_smoke_preset_loads_a_cold_adapter_every_second(tmp_path: Path) -> None:
    made = tmp_path / "latency.json"
    run_program("latency.py", "--preset", "smoke", "--json", made)
    figures = {f.name: f for f in Figures.from_json(made.read_text()).figures}
    assert figures["cold adapters loaded"].value == PRESETS["smoke"].window_seconds
    assert figures["reading and placing a cold adapter, mean"].value > 0
    assert figures["p99, loading / calm"].verdict in {"yes", "no"}
