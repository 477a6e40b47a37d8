"""Which systems measure which settings, and with what."""

from dataclasses import replace

from benchmarks.presets import PRESETS, Setting
from benchmarks.runner import adapter_names, measured_by, num_steps, setting_workload
from benchmarks.workload import BASE

SMOKE = PRESETS["smoke"]
NAMES = ["polygraft", "vllm", "vllm-base"]


def test_a_system_without_adapters_measures_only_the_base() -> None:
    assert measured_by(Setting(4, 1, 1), NAMES) == ["polygraft", "vllm"]
    assert measured_by(Setting(0, 1, 1), NAMES) == NAMES


def test_without_adapters_every_request_is_for_the_base() -> None:
    assert adapter_names(2) == ["adapter-000", "adapter-001"]
    assert {r.adapter for r in setting_workload(SMOKE, Setting(0, 4, 8), 0).requests} == {BASE}


def test_progress_counts_loading_and_every_measurement() -> None:
    preset = replace(SMOKE, settings=(Setting(4, 1, 1), Setting(0, 1, 1)), num_rounds=3)
    assert num_steps(preset, NAMES) == 1 + 3 + 3 * (2 + 3)


def test_the_issues_preset_pairs_adapters_with_the_base_alone() -> None:
    settings = PRESETS["issue"].settings
    assert {s.concurrency for s in settings} == {1, 8, 32}
    assert {replace(s, num_adapters=0) for s in settings if s.num_adapters == 16} == {
        s for s in settings if s.num_adapters == 0
    }
