"""Which kernel computes a bucket: as asked for, as measured, or as reckoned; never by content."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polygraft.kernels.fused import dispatch
from polygraft.kernels.fused.dispatch import Dispatcher, column_bucket, describe
from polygraft.kernels.fused.measured_table import Entry, MeasuredTable, file_name, find_table
from polygraft.kernels.fused.tiles import Bucket, Target, TileConfig, Variant

TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")
QKV = (4096, 1024, 1024)
MEASURED = TileConfig(32, 64, 64, variant="pair", producers=5)


def qkv(rows: int) -> Bucket:
    return Bucket.forward(rows, 4096, QKV)


def table(*entries: Entry) -> MeasuredTable:
    measured = entries or (Entry(qkv(16), 64, MEASURED, 12.5),)
    return MeasuredTable("NVIDIA H200", "3.7", measured, {"driver": "575.1"})


def test_columns_are_rounded_up_to_their_bucket() -> None:
    found = [column_bucket(columns) for columns in (0, 1, 16, 17, 64, 65, 300, 1024, 9000)]
    assert found == [0, 16, 16, 64, 64, 256, 1024, 1024, 1024]


@pytest.mark.parametrize(
    ("rows", "columns", "variant"),
    [
        (1, 0, "base"),
        (1, 16, "inline"),
        (256, 64, "inline"),
        (32, 65, "producers"),
        (256, 1024, "producers"),
        (257, 16, "hybrid"),
        (2048, 0, "base"),
    ],
)
def test_the_reckoned_variant_of_a_bucket(rows: int, columns: int, variant: Variant) -> None:
    assert Dispatcher("sm_90").choice(qkv(rows), columns).variant == variant


def test_where_waiting_is_not_promised_to_end_nobody_waits() -> None:
    assert Dispatcher("gfx942").choice(qkv(32), 128).variant == "pair"


@pytest.mark.parametrize("target", TARGETS)
def test_all_layers_of_a_step_have_one_plan(target: Target) -> None:
    dispatcher = Dispatcher(target)
    sites = [(4096, QKV), (4096, (14336, 14336)), (896, (896,)), (64, (33, 65))]
    for rows in (1, 7, 16, 17, 64, 65, 300, 4096, 10_000):
        block_rows = dispatcher.block_rows(rows)
        for (inputs, slices), columns in ((s, c) for s in sites for c in (0, 16, 64, 300, 4096)):
            config = dispatcher.choice(Bucket.forward(rows, inputs, slices), columns)
            assert config.block_m == block_rows


def test_one_bucket_is_decided_once() -> None:
    dispatcher = Dispatcher("sm_90")
    first = dispatcher.choice(qkv(9), 20)
    assert dispatcher.choice(qkv(16), 64) is first
    assert dispatcher.chosen() == {(qkv(16), 64): first}


@pytest.mark.parametrize("override", ["inline", "producers", "pair", "hybrid"])
def test_a_variant_can_be_asked_for(override: Variant) -> None:
    dispatcher = Dispatcher("sm_90", table(), override)
    configs = [dispatcher.choice(qkv(rows), c) for rows in (1, 16, 2048) for c in (0, 64, 256)]
    assert {config.variant for config in configs} == {override}
    assert dispatcher.source == f"{override}, as asked for"


@pytest.mark.parametrize("name", ["base", "fastest"])
def test_a_variant_that_would_leave_out_the_adapters_or_does_not_exist_is_refused(
    name: str,
) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' cannot be asked for: .* inline, producers"):
        Dispatcher("sm_90", None, name)  # type: ignore[arg-type]


def test_a_measured_entry_goes_before_the_reckoning() -> None:
    dispatcher = Dispatcher("sm_90", table())
    assert dispatcher.choice(qkv(9), 40) == MEASURED
    assert dispatcher.source == "measured on NVIDIA H200 with Triton 3.7"
    # What was not measured of this row bucket takes the tiles of rows that its plan has.
    assert dispatcher.block_rows(9) == 32
    other = dispatcher.choice(qkv(9), 16)
    assert (other.variant, other.block_m) == ("inline", 32)
    assert dispatcher.choice(qkv(64), 40).variant == "inline"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    gradient = Bucket.gradient(300, 4096, QKV)
    entries = (*table().entries, Entry(gradient, 16, replace(MEASURED, block_m=128), 80.0))
    path = tmp_path / file_name("NVIDIA H200", "3.7")
    assert path.name == "nvidia-h200.triton-3.7.json"
    path.write_text(table(*entries).to_json())
    found = find_table("NVIDIA H200", "3.7", tmp_path)
    assert found is not None
    assert tuple(found.entries) == entries
    assert found.conditions == {"driver": "575.1"}
    assert find_table("NVIDIA H200", "3.9", tmp_path) is None
    assert find_table("NVIDIA A100", "3.7", tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 16, "columns": 16, "tiles": {"block_m": 16}}, "rows have tiles of 32 rows"),
        ({"tiles": {"variant": "fastest"}}, "no kernel is called 'fastest'"),
        ({"tiles": {"blocks": 3}}, "no table of measured kernels"),
    ],
)
def test_a_damaged_table_is_refused_by_name(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    data = json.loads(table().to_json())
    broken = json.loads(json.dumps(data["entries"][0]))
    broken["tiles"] |= change.pop("tiles", {})
    data["entries"].append(broken | change)
    path = tmp_path / file_name("NVIDIA H200", "3.7")
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"{path.name}: .*{message}"):
        find_table("NVIDIA H200", "3.7", tmp_path)


def test_the_device_says_what_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(dispatch, "target_of", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    with caplog.at_level("INFO", logger=dispatch.__name__):
        assert Dispatcher.for_device(device).choice(qkv(1), 16).variant == "inline"
        monkeypatch.setenv("POLYGRAFT_KERNEL", "pair")
        assert Dispatcher.for_device(device).choice(qkv(1), 16).variant == "pair"
    messages = [record.message for record in caplog.records]
    assert messages[0].endswith(": reckoned for sm_90, not measured on this GPU")
    assert messages[1].endswith(": pair, as asked for")
    monkeypatch.setenv("POLYGRAFT_KERNEL", "quick")
    with pytest.raises(ValueError, match="'quick' cannot be asked for"):
        Dispatcher.for_device(device)


def test_every_form_has_a_name() -> None:
    assert describe(TileConfig(16, 64, 64, split_k=2)) == "inline 16x64x64 split 2"
    assert describe(MEASURED) == "pair 32x64x64"
    assert describe(replace(MEASURED, variant="base")) == "base"
