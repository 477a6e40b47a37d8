"""Drives an engine step by step, with adapters put straight onto the device."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.weights import AdapterWeights, read_adapter
from polygraft.server.engine.batch import ForwardBatch
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    FinishReason,
    Sampling,
    SequenceOutput,
    Stopping,
    TokenLogprob,
)
from polygraft.server.engine.step_logits import StepLogits, step_logits
from polygraft.server.engine.step_plan import StepPlan


class LoadedAdapters:
    """Adapters that are on the device from the start; counts references like the real thing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.references: Counter[str] = Counter()
        self.holders: Counter[str] = Counter()
        self.virtual: dict[str, int] = {}
        self.prefix: dict[str, int] = {}
        self.evicted: set[str] = set()
        self.hidden: set[str] = set()  # digests that pretend to be still loading
        self.failures: dict[str, Exception] = {}

    def load(self, digest: str, directory: Path, *, poison: float | None = None) -> None:
        """Read a PEFT directory and put it on the device. poison: a value that takes the place of
        one in each of its tensors, as no check would let it."""
        weights = read_adapter(
            directory, self.engine.geometry, AdapterLimits(), dtype=self.engine.base.dtype
        )
        if poison is not None:
            _poison(weights, poison)
        assert self.engine.bank.fits(weights) is None
        assert self.engine.bank.reserve(digest, weights)
        self.engine.bank.copy(digest, weights)
        self.evicted.discard(digest)
        self.virtual[digest] = weights.num_virtual_tokens
        if weights.kind == "prefix":
            self.prefix[digest] = weights.num_virtual_tokens

    def unload(self, digest: str) -> None:
        """Take a version off the device unless somebody computes with it."""
        if digest not in self.evicted and not self.holders[digest]:
            self.engine.bank.free(digest)
            self.evicted.add(digest)

    def reveal(self) -> None:
        """The hidden ones have arrived."""
        arrived, self.hidden = self.hidden, set()
        for digest in arrived:
            self.engine.wake(digest)

    def is_ready(self, *digests: str) -> bool:
        return (self.virtual.keys() - self.hidden - self.evicted).issuperset(digests)

    def hold(self, *digests: str) -> bool:
        if self.is_ready(*digests):
            self.holders.update(digests)
        return self.is_ready(*digests)

    def drop(self, *digests: str) -> None:
        self.holders.subtract(digests)

    def failure(self, *digests: str) -> Exception | None:
        return next((self.failures[d] for d in digests if d in self.failures), None)

    def release(self, *digests: str) -> None:
        self.references.subtract(digests)


def _poison(weights: AdapterWeights, value: float) -> None:
    virtual = [t for t in (weights.prompt_embeddings, weights.prefix) if t is not None]
    for tensor in (*virtual, *(module.lora_b for module in weights.modules.values())):
        tensor.view(-1)[0] = value


@dataclass
class Answer:
    """Everything one request produced."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # [vocab_size] per output token
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    num_cached: int = 0

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class Harness:
    """An engine without a thread: `submit`, then `run_step` or `run`."""

    def __init__(self, base: Path, path: DevicePath | None = None, **settings: object) -> None:
        """path: the device to serve from with its own kernels; None: this CPU as it serves."""
        config = EngineConfig.model_validate(
            {
                "dtype": "float32",
                "threads": 1,
                "kv_bytes": 1 << 24,
                "pool_rows": 256,
                "speculation": "off",  # so that every row of logits gives a token
                **settings,
            }
        )
        self.engine = Engine.load(base, config, path=path)
        self.adapters = LoadedAdapters(self.engine)
        self.answers: dict[str, Answer] = defaultdict(Answer)
        self.engine.attach(self.adapters, self._publish)
        self._record_logits()
        self.start_ledger = self.engine.ledger()

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        *,
        max_output_tokens: int = 8,
        adapter: str | Mapping[str, float] | None = None,
        stop: frozenset[int] = frozenset(),
        sampling: Sampling | None = None,
        time_limit: float | None = None,
        min_output_tokens: int = 0,
        **fields: Any,
    ) -> None:
        """adapter: one version, or several with weights; `fields` are others of EngineRequest."""
        weights = {adapter: 1.0} if isinstance(adapter, str) else dict(adapter or {})
        shares = sorted(AdapterShare(digest, weight) for digest, weight in weights.items())
        request = EngineRequest(
            request_id,
            tuple(prompt),
            Stopping(max_output_tokens, stop, time_limit, min_output_tokens),
            sampling or Sampling(),
            adapters=tuple(shares),
            num_virtual=sum(self.adapters.virtual.get(digest, 0) for digest in weights),
            num_prefix=sum(self.adapters.prefix.get(digest, 0) for digest in weights),
            **fields,
        )
        self.adapters.references.update(weights.keys())
        try:
            self.engine.submit(request)
        except Exception:
            self.adapters.release(*weights)
            raise

    def run_step(self) -> bool:
        """One step, with every invariant checked after it."""
        ran = self.engine.step()
        self.engine.check_integrity()
        return ran

    def run(self, max_steps: int = 2000) -> None:
        """Steps until nothing is left."""
        for _ in range(max_steps):
            self.run_step()
            if not self.engine.ledger()["live_sequences"]:
                return
        raise AssertionError("the engine did not finish")

    def preempt(self, request_id: str) -> None:
        """Take a running sequence's blocks away, as the scheduler does when there are too few."""
        scheduler = self.engine._scheduler
        scheduler._preempt(scheduler.running[request_id], StepPlan(0))

    @property
    def running(self) -> list[str]:
        """Requests that are admitted, in order of admission."""
        return list(self.engine._scheduler.running)

    def assert_clean(self) -> None:
        """Everything that was taken has been given back."""
        assert self.engine.ledger() == self.start_ledger
        assert not any(self.adapters.references.values())
        assert not any(self.adapters.holders.values())

    def _publish(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            answer = self.answers[output.request_id]
            assert not answer.is_done, "an output after the last one"
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs
            answer.prompt_logprobs += output.prompt_logprobs
            answer.finish_reason, answer.error = output.finish_reason, output.error
            answer.num_cached = output.num_cached

    def _record_logits(self) -> None:
        run = self.engine._runner.run

        def recording(batch: ForwardBatch) -> Tensor | StepLogits:
            logits = run(batch)
            for group in batch.samples:
                rows = step_logits(logits).tensor[group.first : group.first + group.count]
                own = self.answers[group.chunk.sequence.id].logits
                own += [row.to("cpu", copy=True) for row in rows]
            return logits

        self.engine._runner.run = recording  # type: ignore[method-assign]


def random_prompts(count: int, *, vocab: int, seed: int, longest: int = 60) -> list[list[int]]:
    """Prompts of 2 .. longest random ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]
