"""The systems under measurement, one module each, loaded only in that system's own process."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from benchmarks.peers import PeerAbsent, environment
from benchmarks.workload import RequestTrace, Workload


@dataclass(frozen=True, slots=True)
class Entry:
    """How a system is found. Its module has `load(job: Job) -> System`."""

    module: str
    peer: str | None = None  # name of the environment that it needs
    takes_adapters: bool = True  # False: loaded without any, measured on the base alone


SYSTEMS = {
    "polygraft": Entry("benchmarks.systems.polygraft_engine"),
    "polygraft-grpc": Entry("benchmarks.systems.polygraft_grpc"),
    "polygraft-int8": Entry("benchmarks.systems.polygraft_int8"),
    "peft": Entry("benchmarks.systems.peft_generate"),
    "llama-cpp": Entry("benchmarks.peers.llama_cpp", peer="llama-cpp"),
    "vllm": Entry("benchmarks.peers.vllm", peer="vllm"),
    "vllm-base": Entry("benchmarks.peers.vllm", peer="vllm", takes_adapters=False),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What a system serves. Everything is the same for every system of a run."""

    base: Path
    adapters: dict[str, Path]  # name to PEFT directory
    dtype: str
    threads: int
    max_concurrency: int
    max_sequence_tokens: int  # longest prompt + output


class System(Protocol):
    """One way to serve the workload. All adapters are ready to use once `load` has returned."""

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve every request, `workload.concurrency` at a time; traces in the requests' order."""

    def process_ids(self) -> list[int]:
        """Processes whose CPU time and memory count as this system's."""

    def close(self) -> None:
        """End everything that `load` started."""


def load_system(name: str, job: Job) -> System:
    """Import and load one system; errors pass through."""
    system: System = import_module(SYSTEMS[name].module).load(job)
    return system


def missing_peer(name: str) -> str | None:
    """Why a system cannot be measured here, in one sentence; None if it can."""
    peer = SYSTEMS[name].peer
    if peer is None:
        return None
    try:
        environment(peer)
    except PeerAbsent as absent:
        return str(absent)
    return None
