"""Rows are what the measurements say, and incomparable work is refused."""

import json
from typing import Any

import pytest
from benchmarks.presets import Setting
from benchmarks.report import Measurement, Row, lora_tax, percentile
from benchmarks.workload import RequestTrace, Workload, WorkloadRequest

WORKLOAD = Workload((WorkloadRequest((1, 2), "a", 3), WorkloadRequest((3,), "b", 3)), concurrency=2)
KEYS = [
    "system",
    "model",
    "dtype",
    "adapters",
    "concurrency",
    "tokens_per_s",
    "cpu_ms_per_token",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "rss_mib",
]


def measurement(seconds: float, last_token: int = 9) -> Measurement:
    traces = [
        RequestTrace(submitted=0.0, token_times=[0.1, 0.2, 0.4], token_ids=[7, 8, last_token]),
        RequestTrace(submitted=0.0, token_times=[0.3, 0.4, 0.5], token_ids=[1, 2, 3]),
    ]
    return Measurement(seconds, cpu_seconds=2 * seconds, rss_bytes=3 * 2**20, traces=traces)


def row(rounds: list[Measurement], workload: Workload = WORKLOAD) -> dict[str, Any]:
    setting = Setting(num_adapters=2, concurrency=2, num_requests=2)
    reference = measurement(1.0)
    made = Row.summarize("system", "tiny", "float32", setting, workload, rounds, reference)
    line: dict[str, Any] = json.loads(made.to_json_line())
    return line


def test_a_line_begins_with_the_agreed_keys() -> None:
    assert list(row([measurement(1.0)]))[: len(KEYS)] == KEYS


def test_rates_are_the_median_of_the_rounds() -> None:
    line = row([measurement(1.0), measurement(2.0), measurement(6.0)])
    assert (line["tokens_per_s_min"], line["tokens_per_s"], line["tokens_per_s_max"]) == (1, 3, 6)
    assert line["cpu_ms_per_token"] == pytest.approx(1e3 * 4 / 6, abs=1e-3)
    assert line["rss_mib"] == 3


def test_latencies_pool_the_requests() -> None:
    line = row([measurement(1.0)])
    assert line["ttft_ms_p50"] == pytest.approx(200)
    assert line["itl_ms_p50"] == pytest.approx(100)
    assert line["itl_ms_p99"] == pytest.approx(197)


def test_the_share_of_equal_outputs_is_told() -> None:
    assert row([measurement(1.0)])["same_output"] == 1
    assert row([measurement(1.0), measurement(1.0, last_token=0)])["same_output"] == 0.75


def test_a_system_that_did_less_work_is_refused() -> None:
    more = Workload((*WORKLOAD.requests, WorkloadRequest((4,), "a", 3)), concurrency=2)
    with pytest.raises(ValueError, match="produced 6 tokens instead of 9"):
        row([measurement(1.0)], more)


def test_the_tax_of_adapters_is_told_against_the_base_of_the_same_system() -> None:
    reference = measurement(1.0)

    def made(system: str, num_adapters: int, seconds: float) -> Row:
        setting = Setting(num_adapters=num_adapters, concurrency=2, num_requests=2)
        rounds = [measurement(seconds)]
        return Row.summarize(system, "tiny", "float32", setting, WORKLOAD, rounds, reference)

    rows = [made("ours", 16, 2.0), made("ours", 0, 1.0), made("theirs", 16, 1.0)]
    assert lora_tax(rows) == {("ours", 16, 2): 0.5}


@pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (99, 99.0), (1, 1.0)])
def test_percentiles_interpolate_between_ranks(percent: int, expected: float) -> None:
    assert percentile([float(value) for value in range(101)], percent) == expected


def test_the_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.0], 99) == 3.0
