"""Makes the model and adapters that a benchmark serves, and says how they are to be served."""

from __future__ import annotations

from benchmarks.models import adapter_name, prepare_model
from benchmarks.systems import Job


def make_job(
    model: str,
    num_adapters: int,
    *,
    dtype: str,
    threads: int,
    seed: int,
    max_concurrency: int,
    max_sequence_tokens: int,
) -> Job:
    """A job with adapters 0 to `num_adapters` - 1 by their names."""
    base, adapters = prepare_model(model, num_adapters, dtype=dtype, seed=seed)
    return Job(
        base=base,
        adapters={adapter_name(index): path for index, path in enumerate(adapters)},
        dtype=dtype,
        threads=threads,
        max_concurrency=max_concurrency,
        max_sequence_tokens=max_sequence_tokens,
    )
