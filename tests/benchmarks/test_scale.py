"""The store holds what it is said to hold; the smoke preset runs to a table."""

from pathlib import Path

import pytest
from benchmark_support.programs import run_program
from benchmarks.figures import Figures
from benchmarks.models import prepare_model
from benchmarks.populated_store import name_of, prepare_store, version_bytes
from benchmarks.scale import PRESETS, row_bytes

from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore


def test_a_store_has_as_many_versions_as_names_but_shares_weights(tmp_path: Path) -> None:
    made, _ = prepare_model("tiny", 1, dtype="bfloat16", seed=0)
    base = tmp_path / "base"
    base.symlink_to(made)
    folder = prepare_store(base, num_distinct=3, num_registered=7, seed=0)
    assert folder == prepare_store(base, num_distinct=3, num_registered=7, seed=0)
    registry = Registry(LocalStore(folder))
    assert registry.names() == [name_of(index) for index in range(7)]
    digests = [registry.resolve(name).digest for name in registry.names()]
    assert len(set(digests)) == 7
    weights = [registry.files(digest)["adapter_model.safetensors"] for digest in digests]
    assert len(set(weights)) == 3
    size = weights[0].stat().st_size
    assert version_bytes(base) < size < version_bytes(base) + 4096


def test_rows_of_the_pools_are_counted_as_the_engine_lays_them_out() -> None:
    base, _ = prepare_model("tiny", 1, dtype="bfloat16", seed=0)
    # q, k, v: 3 * 128 in, 128 + 2 * 64 out; o: 128, 128; gate, up: 2 * 128, 512; down: 256, 128
    expected = 2 * 2 * (3 * 128 + 256 + 128 + 128 + 2 * 128 + 512 + 256 + 128)
    assert row_bytes(base, "bfloat16") == expected


def test_the_issue_is_measured_by_default() -> None:
    preset = PRESETS["issue"]
    assert (preset.num_registered, preset.num_used) == (10_000, 1000)
    assert (preset.num_on_device, preset.num_on_host) == (64, 256)


@pytest.mark.slow
def test_the_smoke_preset_measures_both_servers(tmp_path: Path) -> None:
    made = tmp_path / "scale.json"
    run_program("scale.py", "--preset", "smoke", "--json", made)
    figures = {f.name: f.value for f in Figures.from_json(made.read_text()).figures}
    assert figures["throughput, scaled"] > 0
    assert 0 < figures["host copies / their limit"] <= 1
    assert figures["adapters placed on the device, by request"] > 0
