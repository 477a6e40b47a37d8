"""The gate with nothing made up: trained adapters, two servers on one store, a gate and a rollback.

POLYGRAFT_ROLLBACKS=20 .venv/bin/pytest -s tests/trainer/test_gate.py prints how long a rollback
takes to reach new requests on both.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from server_support.service import in_thread

from polygraft.client import Client, GateRefused
from polygraft.server.config import ServerConfig
from polygraft.server.serve import RunningServer, run_server
from polygraft.trainer.config import RunConfig
from polygraft.trainer.gate import GateRun, run_gate
from polygraft.trainer.run import train

ROLLBACKS = int(os.environ.get("POLYGRAFT_ROLLBACKS", "1"))
BETTER = {"name": "better", "optim": {"epochs": 12, "lr": 0.01}}
WORSE = {"name": "worse", "optim": {"epochs": 1, "lr": 0.0001}}


@contextmanager
def server_on(base: Path, store: Path, own: Path) -> Iterator[RunningServer]:
    config = ServerConfig.model_validate(
        {
            "model": str(base),
            "port": 0,
            "metrics_port": 0,
            "store": store,
            "storage": {"local_dir": str(own)},
            "engine": {"dtype": "float32", "threads": 1, "kv_bytes": 1 << 24, "pool_rows": 64},
        }
    )
    with in_thread(lambda: run_server(config)) as server:
        yield server


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """The toy task with numbers that no training row has."""
    path = tmp_path / "held_out.jsonl"
    words = ("red", "green", "blue", "dog", "cat", "sun", "moon", "tree")
    rows = (
        {"prompt": f"{words[i % 8]} {500 + i}:", "completion": words[i % 8]} for i in range(104)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_worse_adapter_is_refused_a_better_one_promoted_and_a_rollback_reaches_all(
    make_config: Callable[..., RunConfig], tiny_base: Path, held_out: Path, tmp_path: Path
) -> None:
    worse, better = (train(make_config(**run), score_test=False) for run in (WORSE, BETTER))
    store = tmp_path / "store"
    with (
        server_on(tiny_base, store, tmp_path / "one") as one,
        server_on(tiny_base, store, tmp_path / "two") as two,
        Client(f"127.0.0.1:{one.port}") as client,
        Client(f"127.0.0.1:{two.port}") as other,
    ):
        client.upload_adapter(worse.directory, "toy")
        client.upload_adapter(better.directory, "toy")
        gate: dict[str, Any] = {
            "address": client.address,
            "name": "toy",
            "data": held_out,
            "metric": "exact_match",
        }
        moved = run_gate(GateRun(version="2", **gate))
        verdict = moved.verdict
        assert verdict is not None
        assert (moved.number, verdict.passed) == (2, True)
        assert verdict.interval[0] > 0
        print(f"promoted: {verdict.current:.1f} -> {verdict.candidate:.1f}, {verdict.interval}")
        with pytest.raises(GateRefused, match="difference: -") as refused:
            run_gate(GateRun(version="1", **gate))
        print(f"refused: {refused.value.message}")
        number_of = {v.digest: v.number for v in client.list_versions("toy")}

        def served_by(asked: Client) -> int:
            answer = asked.generate("sun 600:", adapter="toy", max_output_tokens=1)
            assert answer.version is not None
            return number_of[answer.version.digest]

        times = []
        for _ in range(ROLLBACKS):
            wait_until(lambda: served_by(other) == 2)
            started = time.monotonic()
            assert client.rollback_alias("toy", reason="test").number == 1
            assert served_by(client) == 1
            here = time.monotonic() - started
            wait_until(lambda: served_by(other) == 1)
            times.append((here, time.monotonic() - started))
            client.move_alias("toy", "live", 2)
        here, there = (max(column) for column in zip(*times, strict=True))
        print(f"{ROLLBACKS} rollbacks: new requests at most {here:.3f} s here, {there:.3f} s there")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "the other server did not follow"
