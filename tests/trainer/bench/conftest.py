"""The bundled base here and on a server, a soft prompt on it, lm-eval's own model class."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import PromptTuningConfig, TaskType
from server_support.service import in_thread

from polygraft.client import Client
from polygraft.server.config import ServerConfig
from polygraft.server.serve import run_server
from polygraft.trainer.bench.local_model import LocalModel, open_local
from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer
from polygraft.trainer.methods.peft_wrapping import wrap

VIRTUAL = 7


@pytest.fixture(scope="session")
def nano() -> LocalModel:
    return open_local("builtin:nano")


@pytest.fixture(scope="session")
def hugging_face(nano: LocalModel) -> Any:
    """lm-eval's own class on the same weights, with windows of the size of ours."""
    from lm_eval.models.huggingface import HFLM

    base = load_frozen_base(
        "builtin:nano", load_tokenizer("builtin:nano"), dtype="fp32", device="cpu"
    )
    return HFLM(
        pretrained=base.model, tokenizer=base.tokenizer, max_length=nano.window - 1, batch_size=8
    )


@pytest.fixture(scope="session")
def soft_prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT directory of some virtual tokens for the bundled base."""
    base = load_frozen_base(
        "builtin:nano", load_tokenizer("builtin:nano"), dtype="fp32", device="cpu"
    )
    torch.manual_seed(3)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL)
    path = tmp_path_factory.mktemp("soft") / "adapter"
    wrap(base.model, config).save_pretrained(str(path))
    written = json.loads((path / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = "builtin:nano"
    (path / "adapter_config.json").write_text(json.dumps(written))
    return path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, soft_prompt: Path) -> Iterator[str]:
    """Address of a server of the bundled base in fp32, with the soft prompt as `soft`."""
    config = ServerConfig.model_validate(
        {
            "port": 0,
            "metrics_port": 0,
            "store": tmp_path_factory.mktemp("served") / "store",
            "engine": {"dtype": "float32", "threads": 1, "kv_bytes": 1 << 26, "pool_rows": 64},
        }
    )
    with in_thread(lambda: run_server(config)) as server:
        address = f"127.0.0.1:{server.port}"
        with Client(address, timeout=30) as client:
            client.upload_adapter(soft_prompt, "soft", alias="live", allow_unverified_base=True)
        yield address
        server.check_integrity()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that Python opens fails; gRPC's own library, which is C, is not touched."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, Sequence[Mapping[str, Any]]], Path]:
    """Write rows as JSONL below the data folder, which is returned."""

    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "data"

    return write
