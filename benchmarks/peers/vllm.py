"""vLLM's OpenAI server, built for CPUs, with every adapter as a model of its own.

With adapters it serves `--enable-lora`; without any it is vLLM's plain server, its best case.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.models import RANKS
from benchmarks.peers import environment
from benchmarks.peers.http_events import answers, post_events
from benchmarks.peers.http_server import HttpServer
from benchmarks.server_process import ServerProcess, free_port
from benchmarks.systems import Job
from benchmarks.workload import BASE, WorkloadRequest

START_TIMEOUT = 400.0  # seconds; it compiles the model first
BASE_NAME = "base"  # under which the base is asked for


def load(job: Job) -> HttpServer:
    """Start the server and wait until it has loaded everything."""
    port = free_port()
    server = ServerProcess(
        serve_command(job, environment("vllm"), port), environment=serve_environment(job)
    )
    try:
        server.wait_until(lambda: answers(port, "/health"), timeout=START_TIMEOUT)
    except BaseException:
        server.close()
        raise

    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        async for event in post_events(port, "/v1/completions", completion_body(request)):
            yield event["choices"][0]["token_ids"] or []

    return HttpServer(server, stream)


def serve_command(job: Job, folder: Path, port: int) -> list[str]:
    """The command line. The module, not `vllm serve`: that one needs another package's metadata."""
    command = [str(folder / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(job.base), "--served-model-name", BASE_NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", job.dtype]
    command += ["--max-model-len", str(job.max_sequence_tokens)]
    command += ["--max-num-seqs", str(job.max_concurrency)]
    # Rounds repeat their prompts: a cache would answer from memory what the others compute.
    command += ["--no-enable-prefix-caching", "--disable-log-stats"]
    if job.adapters:
        command += ["--enable-lora", "--max-lora-rank", str(max(RANKS))]
        command += ["--max-loras", str(len(job.adapters)), "--lora-modules"]
        command += [f"{name}={path}" for name, path in job.adapters.items()]
    return command


def serve_environment(job: Job) -> dict[str, str]:
    """What is set by environment only: the cores to compute on and the size of the KV cache."""
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, the least it takes
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def completion_body(request: WorkloadRequest) -> dict[str, object]:
    """A request of the OpenAI completions API, with vLLM's own fields."""
    return {
        "model": BASE_NAME if request.adapter == BASE else request.adapter,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": request.max_output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
