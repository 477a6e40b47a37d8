"""The index and the crowds are what they are said to be; the smoke preset runs to a table."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from benchmark_support.programs import run_program
from benchmarks.fairness import (
    KINDS,
    PRESETS,
    Crowd,
    callers_beside_victim,
    jain_index,
    prompts_of,
    victim_arrivals,
)
from benchmarks.figures import Figures
from benchmarks.workload import WorkloadRequest

PRESET = PRESETS["issue"]
NAMES = [f"adapter-{index}" for index in range(PRESET.num_adapters)]


def test_jains_index_is_one_for_equals_and_one_nth_for_one_that_has_it_all() -> None:
    assert jain_index([3, 3, 3, 3]) == 1
    assert jain_index([8, 0, 0, 0]) == 0.25
    assert jain_index([2, 1]) == pytest.approx(0.9)


def test_a_flood_is_one_adapter_at_twenty_times_the_callers_of_the_others() -> None:
    assert callers_beside_victim(PRESET, NAMES, "alone") == {}
    shared = callers_beside_victim(PRESET, NAMES, "shared")
    flooded = callers_beside_victim(PRESET, NAMES, "flooded")
    assert NAMES[0] not in shared
    assert set(shared.values()) == {2}
    assert flooded == {**shared, NAMES[1]: 40}
    assert sum(shared.values()) <= PRESET.max_running < sum(flooded.values())


def test_the_victim_sends_evenly() -> None:
    arrivals = victim_arrivals(PRESET, "v", 0)
    assert [arrival.at * 1.5 for arrival in arrivals] == pytest.approx(range(22))


async def test_a_crowd_counts_what_it_is_served_and_goes_when_its_window_ends() -> None:
    running = 0

    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        nonlocal running
        running += 1
        try:
            for token in range(request.max_output_tokens):
                await asyncio.sleep(0)
                yield [token]
        finally:
            running -= 1

    crowd = Crowd(stream, prompts_of(PRESETS["smoke"], 0), output_tokens=2, settling=0.0)
    async with crowd.present({"a": 3, "b": 1}):
        while crowd.tokens.get("b", 0) < 100:
            await asyncio.sleep(0)
        assert running == 4
    assert running == 0
    assert crowd.tokens["a"] == pytest.approx(3 * crowd.tokens["b"], rel=0.1)


async def test_a_crowd_whose_request_fails_is_no_measurement() -> None:

    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        raise ConnectionError("gone")
        yield []

    crowd = Crowd(stream, prompts_of(PRESETS["smoke"], 0), output_tokens=2, settling=0.0)
    with pytest.raises(ConnectionError, match="gone"):
        async with crowd.present({"a": 1}):
            await asyncio.sleep(0.01)


@pytest.mark.slow
def test_the_smoke_preset_measures_victim_and_shares(tmp_path: Path) -> None:
    made = tmp_path / "fairness.json"
    run_program("fairness.py", "--preset", "smoke", "--json", made)
    figures = {f.name: f for f in Figures.from_json(made.read_text()).figures}
    assert all(figures[f"victim's first token, {kind}, p99"].value > 0 for kind in KINDS)
    assert 0 < figures["Jain index, unequal backlogs"].value <= 1
    assert figures["victim's requests, of each kind"].value == 10
