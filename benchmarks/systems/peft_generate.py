"""PEFT's `generate(adapter_names=...)`: static batches with mixed adapters, left-padded prompts.

Every batch holds as many requests as there are clients, and all outputs are equally long, so no
client waits for a place in a batch and no row runs empty: a static batch's best case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.systems import Job
from benchmarks.workload import RequestTrace, Workload, WorkloadRequest

PAD = 0
NO_ADAPTER = "__base__"  # what PEFT calls the base alone


class StepTimes(BaseStreamer):
    """Notes when `generate` hands over the prompt and then each step's tokens, a batch at once."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt [batch, prompt_tokens], then with each step's tokens [batch]."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called once at the end."""


class PeftGenerate:
    """A `PeftModel` with every adapter loaded."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def run(self, workload: Workload) -> list[RequestTrace]:
        """Serve the requests in order, one static batch after the other."""
        size = workload.concurrency
        starts = range(0, len(workload.requests), size)
        batches = [workload.requests[start : start + size] for start in starts]
        return [trace for batch in batches for trace in self.run_batch(batch)]

    @torch.inference_mode()
    def run_batch(self, requests: Sequence[WorkloadRequest]) -> list[RequestTrace]:
        """One `generate` call; every row gets exactly `max_output_tokens` tokens."""
        submitted = time.perf_counter()
        input_ids, attention_mask = pad_left([request.prompt_token_ids for request in requests])
        (num_tokens,) = {request.max_output_tokens for request in requests}
        streamer = StepTimes()
        output_ids: torch.Tensor = self.model.generate(  # type: ignore[no-untyped-call]
            input_ids=input_ids,
            attention_mask=attention_mask,
            adapter_names=[request.adapter or NO_ADAPTER for request in requests],
            streamer=streamer,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=PAD
            ),
        )
        outputs = output_ids[:, input_ids.shape[1] :].tolist()  # [batch, num_tokens]
        token_times = streamer.times[1:]
        assert len(token_times) == num_tokens
        return [RequestTrace(submitted, list(token_times), output) for output in outputs]

    def process_ids(self) -> list[int]:
        """This process."""
        return [os.getpid()]

    def close(self) -> None:
        """Nothing outlives the process."""


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [batch, longest prompt]."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[PAD] * (longest - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return input_ids, mask


def load(job: Job) -> PeftGenerate:
    """Load the base and every adapter."""
    torch.set_num_threads(job.threads)
    base = AutoModelForCausalLM.from_pretrained(job.base, dtype=getattr(torch, job.dtype))
    (first, path), *others = job.adapters.items()
    model = PeftModel.from_pretrained(base, path, adapter_name=first)
    for name, path in others:
        model.load_adapter(str(path), adapter_name=name)
    model.eval()
    # Why: generate() takes what its own configuration leaves unset from this one, and would stop.
    base.generation_config.eos_token_id = None
    return PeftGenerate(model)
