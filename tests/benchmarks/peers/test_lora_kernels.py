"""What stands in for the frameworks around the LoRA kernels of others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.peers import PeerAbsent
from benchmarks.peers.lora_kernels import folder, stubs


@pytest.fixture
def own_modules() -> Iterator[None]:
    """What a test imports is forgotten again."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("vllm", "sglang"):
            del sys.modules[name]


def test_absent_kernels_say_how_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYGRAFT_PEERS", str(tmp_path))
    with pytest.raises(PeerAbsent, match="benchmarks/peers/install lora-kernels"):
        folder()


@pytest.mark.usefixtures("own_modules")
def test_unpacked_files_import_without_their_framework(tmp_path: Path) -> None:
    files = {
        "vllm/__init__.py": "raise ImportError('the framework')",
        "vllm/lora/ops/triton_ops/__init__.py": "raise ImportError('kernels of experts')",
        "vllm/lora/ops/triton_ops/op.py": "from vllm import envs\n"
        "from vllm.logger import init_logger\n"
        "from vllm.lora.ops.triton_ops.tiles import SIZE\n"
        "from vllm.utils.math_utils import next_power_of_2\n"
        "init_logger(__name__).warning_once('no configuration')\n"
        "answer = next_power_of_2(SIZE), envs.VLLM_BATCH_INVARIANT\n",
        "vllm/lora/ops/triton_ops/tiles.py": "SIZE = 5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    stubs.install_vllm(tmp_path)
    assert importlib.import_module("vllm.lora.ops.triton_ops.op").answer == (8, False)


@pytest.mark.parametrize("block", [4, 16])
def test_rows_are_sorted_into_whole_blocks(block: int) -> None:
    ids = torch.tensor([[2, 0, -1, 2, 2, 0, 2, 2]])
    rows, buckets, used = (table.tolist() for table in stubs.align_blocks(ids, block, 3))
    places = [(buckets[place // block], row) for place, row in enumerate(rows) if row < 8]
    assert places == [(0, 1), (0, 5), (2, 0), (2, 3), (2, 4), (2, 6), (2, 7)]
    assert used == [sum(bucket >= 0 for bucket in buckets) * block]
    assert len(rows) == len(buckets) * block
