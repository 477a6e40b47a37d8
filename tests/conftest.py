"""What every test gets: one CPU thread, no network, the markers' conditions, where tools are."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# Before torch and transformers are imported anywhere. Tiny models run fastest on one thread, and a
# test that reaches for a hub must fail at once, not after a time-out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONSAFEPATH", "1")  # for the processes that tests start

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device (torch is imported only to ask)."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Path of `promtool`. Absent: the test is skipped, but fails where CI is set."""
    beside_python = Path(sys.executable).with_name("promtool")
    found = str(beside_python) if beside_python.exists() else shutil.which("promtool")
    if found is None and os.environ.get("CI"):
        pytest.fail("promtool is absent: scripts/fetch-promtool could not get it")
    if found is None:
        pytest.skip("promtool is absent (Debian package prometheus): run scripts/fetch-promtool")
    return Path(found)
