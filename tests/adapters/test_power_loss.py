"""Power lost after any system call of publishes and moves: each recovers to before or after."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from adapter_support.power_loss import Disk, Op, Recorder, write_tree
from adapter_support.press import Press

from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore


def record_life(root: Path, press: Press) -> list[Op]:
    """The calls of two publishes, a move and a deletion in an empty store."""
    made = {content: press.make(content) for content in (1, 2)}
    recorder = Recorder(root)
    with recorder.recording():
        registry = Registry(LocalStore(root))
        for content, (manifest, files) in made.items():
            record = registry.publish("sum", manifest, files)
            recorder.mark(f"version {content} {record.digest}")
        registry.move_alias("sum", "live", 2, reason="better")
        recorder.mark("moved to 2")
        registry.delete_version("sum", 1)
        recorder.mark("deleted 1")
    return recorder.ops


def check(root: Path, acknowledged: list[str]) -> tuple[int, int]:
    """AssertionError unless the store is as before or after each step; what it holds."""
    registry = Registry(LocalStore(root))
    registry.check_integrity()
    versions = registry.versions("sum") if registry.names() else []
    if versions:
        assert len(versions) == registry.num_versions("sum")
    for record in versions:
        assert set(registry.files(record.digest)) == {file.name for file in record.manifest.files}
    known = {record.number: record.digest for record in versions}
    deleting = "moved to 2" in acknowledged
    for mark in acknowledged:
        match mark.split():
            case ["version", "1", digest]:
                assert known.get(1) == digest or deleting
            case ["version", number, digest]:
                assert known[int(number)] == digest
            case ["moved", "to", number]:
                assert registry.resolve("sum").number == int(number)
            case ["deleted", number]:
                assert int(number) not in known
    history = registry.alias_history("sum", "live")
    assert [move.generation for move in history] == list(range(1, len(history) + 1))
    assert not versions or not deleting or history[-1].number == 2
    return len(versions), len(history)


def replay(ops: list[Op], folder: Path) -> set[tuple[int, int]]:
    """All that a loss of power after each call may leave, opened by the next server."""
    disk, acknowledged, states = Disk(), [], set()
    tried: set[tuple[object, ...]] = set()
    for number, op in enumerate(ops):
        if op.kind == "mark":
            acknowledged.append(op.path)
        else:
            disk.apply(op)
        for how, tree in disk.after_power_loss():
            if (outcome := (*tree.items(), *acknowledged)) in tried:
                continue
            tried.add(outcome)
            root = folder / f"after-{len(tried)}"
            write_tree(root, tree)
            try:
                states.add(check(root, acknowledged))
            except Exception as error:
                raise AssertionError(f"power lost after call {number}, {op[:2]}: {how}") from error
            shutil.rmtree(root, ignore_errors=True)  # a registry may still be removing its own
    return states


def test_a_loss_of_power_after_any_call_leaves_before_or_after(
    tmp_path: Path, press: Press
) -> None:
    ops = record_life(tmp_path / "store", press)
    assert {op.kind for op in ops} == {
        "create", "mkdir", "write", "fsync", "sync_directory", "link", "unlink", "mark",
    }  # fmt: skip
    states = replay(ops, tmp_path)
    assert states == {(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2)}


@pytest.mark.parametrize("forgotten", ["fsync", "sync_directory"])
def test_the_replay_finds_a_sync_that_is_missing(
    forgotten: str, tmp_path: Path, press: Press
) -> None:
    ops = record_life(tmp_path / "store", press)
    with pytest.raises(AssertionError, match="power lost after call"):
        replay([op for op in ops if op.kind != forgotten], tmp_path)
