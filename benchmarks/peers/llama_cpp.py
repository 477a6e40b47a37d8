"""llama.cpp's server with all adapters loaded and one chosen per request.

It computes requests of different adapters in separate batches, one adapter per step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.peers.gguf_model import write_adapter, write_model
from benchmarks.peers.http_events import answers, post_events
from benchmarks.peers.http_server import HttpServer
from benchmarks.server_process import ServerProcess, free_port
from benchmarks.systems import Job
from benchmarks.workload import BASE, WorkloadRequest

START_TIMEOUT = 60.0  # seconds
CACHE_TYPES = {"float32": "f32", "bfloat16": "f16"}  # f16: its default, faster than bf16


def load(job: Job) -> HttpServer:
    """Convert base and adapters unless they are, start the server and wait until it answers."""
    program = environment("llama-cpp") / "bin" / "llama-server"
    model = converted(job.base, job.base)
    adapters = [converted(path, job.base) for path in job.adapters.values()]
    port = free_port()
    server = ServerProcess(serve_command(job, program, model, adapters, port))
    try:
        server.wait_until(lambda: answers(port, "/health"), timeout=START_TIMEOUT)
    except BaseException:
        server.close()
        raise
    ids = {name: index for index, name in enumerate(job.adapters)}

    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        async for event in post_events(port, "/completion", completion_body(request, ids)):
            yield event["tokens"]

    return HttpServer(server, stream)


def converted(folder: Path, base: Path) -> Path:
    """The GGUF file of a checkpoint or adapter, made beside the base, published by a rename."""
    path = base.parent / "gguf" / f"{folder.name}.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".draft")
        if folder == base:
            write_model(folder, draft)
        else:
            write_adapter(folder, base, draft)
        draft.rename(path)
    return path


def serve_command(
    job: Job, program: Path, model: Path, adapters: Sequence[Path], port: int
) -> list[str]:
    """The command line: one slot per client, each as long as the longest request."""
    slots, threads = str(job.max_concurrency), str(job.threads)
    cache_type = CACHE_TYPES[job.dtype]
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", slots, "--threads", threads, "--threads-batch", threads]
    command += ["--ctx-size", str(job.max_concurrency * slot_tokens(job))]
    command += ["--cache-type-k", cache_type, "--cache-type-v", cache_type]
    # Rounds repeat their prompts: a cache would answer from memory what the others compute.
    command += ["--no-cache-prompt", "--cache-ram", "0", "--offline", "--no-ui"]
    if adapters:
        # Scale 0: else a request that names none, one for the base, would get all of them.
        command += ["--lora-scaled", ",".join(f"{path}:0" for path in adapters)]
    return command


def slot_tokens(job: Job) -> int:
    """Context of one slot; the server pads it to a multiple of 256 anyway."""
    return -(-job.max_sequence_tokens // 256) * 256


def completion_body(request: WorkloadRequest, ids: dict[str, int]) -> dict[str, object]:
    """A request of llama.cpp's own completion API."""
    adapters = [] if request.adapter == BASE else [{"id": ids[request.adapter], "scale": 1.0}]
    return {
        "prompt": list(request.prompt_token_ids),
        "n_predict": request.max_output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": False,
        "lora": adapters,
    }
