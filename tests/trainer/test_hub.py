"""Data from a hub, which here is a server on this machine; and from none."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from polygraft.trainer.errors import DataError
from polygraft.trainer.hub import fetch
from polygraft.trainer.rows import read_rows

FILES = {"train.jsonl": b'{"prompt": "a", "completion": "b"}\n', "README.md": b"# x\n"}
COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub's API for one data set of one commit."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith("/api/datasets/me/rows/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "me/rows", "sha": COMMIT, "siblings": siblings}).encode()
        elif "/api/datasets/me/rows/tree/" in self.path:
            kinds = [
                {"type": "file", "path": n, "size": len(b), "oid": "x"} for n, b in FILES.items()
            ]
            content = json.dumps(kinds).encode()
        elif self.path.startswith("/datasets/me/rows/resolve/") and name in FILES:
            content = FILES[name]
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"etag"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("address", ["hf:me/rows:train.jsonl", "hf:me/rows", "hf:me/rows@main"])
def test_rows_come_from_the_hub(hub: None, address: str) -> None:
    assert [row for _, row in read_rows(address)] == [{"prompt": "a", "completion": "b"}]


def test_a_file_that_the_hub_does_not_have_is_named(hub: None) -> None:
    with pytest.raises(DataError, match=r"hf:me/rows:none.jsonl: cannot be fetched: "):
        fetch("hf:me/rows:none.jsonl")


def test_without_a_network_it_is_said_in_one_sentence(
    hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot be fetched: .*\. Check the name and the network"):
        fetch("hf:me/rows:train.jsonl")


def test_a_malformed_address_is_refused() -> None:
    with pytest.raises(DataError, match="hf:owner/name"):
        fetch("hf:rows")
