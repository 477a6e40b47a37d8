"""How Polygraft is configured for a job, the same in process and behind gRPC."""

from __future__ import annotations

from benchmarks.models import RANKS
from benchmarks.systems import Job


def engine_settings(job: Job) -> dict[str, str | int]:
    """Fields of `EngineConfig`: all adapters resident, all requests running at once."""
    return {
        "dtype": job.dtype,
        "threads": job.threads,
        "max_running": job.max_concurrency,
        "pool_rows": max(RANKS) * len(job.adapters),
    }
