"""The LoRA kernels of vLLM and SGLang, read from their published wheels, for measurement only.

`benchmarks/peers/install lora-kernels` unpacks the few files into a cache folder outside of the
repository. They import their frameworks; `stubs` stands in for the little that they use of them.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import environment

PEER = "lora-kernels"


def folder() -> Path:
    """Where the sources lie; raises PeerAbsent unless they were installed."""
    return environment(PEER) / "sources"
