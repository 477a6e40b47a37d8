"""Every command and Python block of the README works, word for word, against a server."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from house.checkout import ROOT

from polygraft.trainer.tasks import make_task

README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"  # as the README writes it
COMMANDS = re.findall(r"^polygraft (?!serve).*$", README, re.MULTILINE)
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(RECIPE,) = re.findall(r"^```yaml\n# summarize.yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Session:
    """A reader's second terminal: a folder with `my-adapter/`, and a server somewhere."""

    folder: Path
    address: str

    def run(self, *command: str | Path) -> str:
        variables = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "POLYGRAFT_SERVER": self.address,
            "COLUMNS": "120",
        }
        result = subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("reader")
    make_peft_directory(folder / "my-adapter")
    make_training_files(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reader = Session(folder, f"127.0.0.1:{port}")
    command = [str(BIN / "polygraft"), "serve", "--port", str(port), "--metrics-port", "0"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until_ready(reader, server)
        yield reader
    finally:
        server.terminate()
        server.wait(timeout=30)


def make_peft_directory(folder: Path) -> None:
    """A LoRA with random weights for the bundled base, written by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from polygraft.adapters.fingerprint import resolve_base

    base = AutoModelForCausalLM.from_pretrained(resolve_base("builtin:nano"))
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(folder))


def make_training_files(folder: Path) -> None:
    """The recipe of the README, and the data that it names."""
    (folder / "summarize.yaml").write_text(RECIPE)
    rows = make_task("dsum").splits["train"][:60]
    lines = [
        json.dumps({"dialogue": row["variables"]["dialogue"], "summary": row["completion"]})
        for row in rows
    ]
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n")


def wait_until_ready(reader: Session, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        assert server.poll() is None, (reader.folder / "server.log").read_text()
        health = [str(BIN / "polygraft"), "health", "--server", reader.address]
        if subprocess.run(health, capture_output=True).returncode == 0:
            return
        time.sleep(0.25)
    pytest.fail("the server did not get ready")


def push(reader: Session) -> None:
    reader.run(BIN / "polygraft", "adapters", "push", "my-adapter", "summarize")


@pytest.mark.slow
def test_the_commands_work_in_their_order(session: Session) -> None:
    script = "set -eu\n" + "\n".join(COMMANDS)
    output = session.run("bash", "-c", script)
    assert "summarize@1" in output
    assert "UNVERIFIED" in output
    assert "summarize@2" in output
    (call,) = re.findall(r"`(client\.generate\(variables=.*?\))`", README)
    code = f"from polygraft.client import Client; client = Client('{session.address}'); {call}"
    session.run(BIN / "python", "-P", "-c", code)


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.splitlines()[0])
def test_the_python_works(session: Session, block: str) -> None:
    push(session)
    code = block.replace(ADDRESS, session.address)
    assert session.run(BIN / "python", "-P", "-c", code).strip()


def test_the_readme_shows_commands_and_both_clients() -> None:
    assert len(COMMANDS) >= 4
    assert len(PYTHON_BLOCKS) == 2
    assert all(ADDRESS in block for block in PYTHON_BLOCKS)
