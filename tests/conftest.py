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


_not_run: list[str] = []  # tests that need a CUDA device, where there is none


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked `gpu` out where there is no CUDA device (torch is imported only to ask);
    the summary names them, and they count as neither passed nor skipped."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        items[:] = [item for item in items if item not in gpu_items]
        config.hook.pytest_deselected(items=gpu_items)
        _not_run.extend(item.nodeid for item in gpu_items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    if _not_run:
        terminalreporter.write_line(
            f"{len(_not_run)} tests need a CUDA device and were not run (make gpu-check):"
        )
        for name in sorted({nodeid.partition("[")[0] for nodeid in _not_run}):
            terminalreporter.write_line(f"  {name}")


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
