"""Two runs of one toy task, a good and a bad one, and a server of their base."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from server_support.service import in_thread

from polygraft.client import Client
from polygraft.server.config import ServerConfig
from polygraft.server.serve import run_server
from polygraft.trainer.recipe import parse_recipe
from polygraft.trainer.run import train

WORDS = ("red", "green", "blue", "dog", "cat", "sun", "moon", "tree")
Serve = Callable[[Path, Path], AbstractContextManager[str]]


@dataclass(frozen=True)
class Runs:
    """Run directories; `better` answers what `worse` does not."""

    better: Path
    worse: Path


@pytest.fixture(scope="session")
def runs(tiny_base: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    output = tmp_path_factory.mktemp("runs")

    def make(name: str, epochs: int, lr: float) -> Path:
        recipe = {
            "name": name,
            "base": {"path": str(tiny_base)},
            "data": {"train": str(toy_file), "split": {}, "template": "Say {prompt}"},
            "method": {"kind": "lora", "r": 4},
            "optim": {"epochs": epochs, "lr": lr},
            "eval": {"every": epochs, "generate": {"rows": 4, "max_new_tokens": 8}},
            "runtime": {"account_memory": False},
            "output": str(output),
        }
        return train(parse_recipe(recipe), score_test=False).directory

    return Runs(make("better", 12, 0.01), make("worse", 1, 0.0001))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy task with numbers that no training row has."""
    path = tmp_path_factory.mktemp("held") / "held_out.jsonl"
    rows = (
        {"prompt": f"{WORDS[i % 8]} {500 + i}:", "completion": WORDS[i % 8]} for i in range(104)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@contextmanager
def serve(base: Path, store: Path) -> Iterator[str]:
    """The address of a real server."""
    config = ServerConfig.model_validate(
        {
            "model": str(base),
            "port": 0,
            "metrics_port": 0,
            "store": store,
            "engine": {"dtype": "float32", "threads": 1, "kv_bytes": 1 << 24, "pool_rows": 64},
        }
    )
    with in_thread(lambda: run_server(config)) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def start_server() -> Serve:
    return serve


@pytest.fixture(scope="session")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests, which use names of their own."""
    with serve(tiny_base, tmp_path_factory.mktemp("server") / "store") as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client
