"""How Polygraft is configured for a job, the same in process and behind gRPC."""

from __future__ import annotations

import json

from benchmarks.models import RANKS
from benchmarks.systems import Job

BLOCK_SIZE = 16  # tokens
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def engine_settings(job: Job) -> dict[str, str | int]:
    """Fields of `EngineConfig`: room for the workload and no more, so that memory compares.

    All adapters are resident and all requests run at once. Rounds repeat their prompts, so the
    prefix cache is off: it would answer from memory what the other systems compute. Random weights
    repeat themselves, so guessing tokens is off as well: it would look better here than it is.
    """
    longest = -(-job.max_sequence_tokens // BLOCK_SIZE) * BLOCK_SIZE
    return {
        "dtype": job.dtype,
        "threads": job.threads,
        "max_running": job.max_concurrency,
        "pool_rows": max(RANKS) * len(job.adapters),
        "block_size": BLOCK_SIZE,
        "prefix_cache": False,
        "speculation": "off",
        "kv_bytes": job.max_concurrency * longest * kv_bytes_per_token(job),
    }


def kv_bytes_per_token(job: Job) -> int:
    """Keys and values of one token in all layers."""
    config = json.loads((job.base / "config.json").read_text())
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    heads = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    return int(heads * head_dim * ITEM_BYTES[job.dtype])
