"""An engine without a model: it answers every prompt with a text of the test's choosing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from adapter_support.directories import small_geometry
from adapter_support.fake_device import FakeDevice
from tiny_models import EOS, VOCAB_SIZE, byte_tokenizer
from torch import Tensor

from polygraft.adapters.errors import Unavailable
from polygraft.server.engine.admission import Admission
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Publish
from polygraft.server.engine.messages import (
    EngineRequest,
    EngineStats,
    FairShare,
    FinishReason,
    SequenceOutput,
    TokenLogprob,
)
from polygraft.server.engine.scheduler import AdapterReferences
from polygraft.server.engine.trial import fulfil

CONTEXT_LENGTH = 512
STEP_SECONDS = 0.001


@dataclass
class FakeSequence:
    """One request, its tokens to come, and when its time is over."""

    request: EngineRequest
    tokens: Iterator[int]
    ends_at: float | None
    num_output: int = 0
    holds_adapters: bool = False


@dataclass
class FakeEngine:
    """The surface of `Engine`. Its tokens are bytes; id 257 ends a sequence.

    `reply` is what every prompt gets; `token_ids` replaces it by anything. `may_step` holds all
    sequences up while it is cleared. `submit_error` and `step_error` are raised and sent.
    `tokens_per_output` is what speculation makes. `reservations`: all that were made, with share,
    requests and tokens. `self_tests`: requests of the server's own, for uploads.
    """

    reply: str = "Hello, wörld! 😀"
    token_ids: Callable[[EngineRequest], Iterator[int]] | None = None
    tokens_per_step: int = 1
    tokens_per_output: int = 1
    context_length: int = CONTEXT_LENGTH
    submit_error: Exception | None = None
    step_error: Exception | None = None
    may_step: threading.Event = field(default_factory=threading.Event)
    requests: list[EngineRequest] = field(default_factory=list)
    self_tests: list[EngineRequest] = field(default_factory=list)
    reservations: dict[str, tuple[FairShare, int, int]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_step.set()
        self.tokenizer = byte_tokenizer()
        self.eos_token_ids = frozenset({EOS})
        self.geometry = replace(
            small_geometry(), vocab_size=VOCAB_SIZE, context_length=self.context_length
        )
        self.bank = FakeDevice()
        self.base = SimpleNamespace(dtype=torch.float32)
        self._admission = Admission(
            vocab_size=VOCAB_SIZE,
            context_length=self.context_length,
        )
        self._reserved: set[str] = set()
        self._lock = threading.Lock()
        self._live: dict[str, FakeSequence] = {}
        self._is_stopping = threading.Event()
        self._is_alive = True
        self._thread: threading.Thread | None = None

    def load(self, model: str, config: EngineConfig) -> FakeEngine:
        """In place of `Engine.load`."""
        return self

    def start(self, adapters: AdapterReferences, publish: Publish) -> None:
        """See Engine."""
        self._adapters = adapters
        self._thread = threading.Thread(target=self._run, args=(publish,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """See Engine."""
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5)

    def die(self) -> None:
        """What a bug in the engine does."""
        self._is_alive = False
        self.stop()

    def wake(self, digest: str) -> None:
        """See Engine."""

    def fits_together(self, ranks: Sequence[int]) -> str | None:
        """See Engine."""
        rows = sum(self.bank.pool.block_rows(rank) for rank in ranks if rank)
        return f"they take {rows} rows" if rows > self.bank.pool.total_rows else None

    def reserve(
        self, reservation: str, share: FairShare, *, num_requests: int, num_tokens: int
    ) -> None:
        """See Engine."""
        if self.submit_error is not None:
            raise self.submit_error
        self.reservations[reservation] = (share, num_requests, num_tokens)
        self._reserved.add(reservation)

    def unreserve(self, reservation: str) -> None:
        """See Engine."""
        self._reserved.discard(reservation)

    def submit(self, request: EngineRequest) -> None:
        """See Engine."""
        self._admission.check(request)
        if self.submit_error is not None:
            raise self.submit_error
        limit = request.stopping.time_limit
        ends_at = None if limit is None else time.monotonic() + limit
        tokens = self.token_ids or self._reply_tokens
        with self._lock:
            if not self._is_alive:
                raise Unavailable("the engine is not running.")
            is_test = request.request_id.startswith("self-test")
            (self.self_tests if is_test else self.requests).append(request)
            self._live[request.request_id] = FakeSequence(request, tokens(request), ends_at)

    def abort(self, request_id: str) -> None:
        """See Engine."""
        with self._lock:
            self.aborted.append(request_id)
            sequence = self._live.pop(request_id, None)
        if sequence is not None:
            self._release(sequence)

    def try_update(self, digest: str, x: Mapping[str, Tensor]) -> Future[dict[str, Tensor]]:
        """See Engine; by the formula."""
        modules = self.bank.weights[digest].modules
        result: Future[dict[str, Tensor]] = Future()
        result.set_result(
            {
                name: modules[name].scaling
                * (rows @ modules[name].lora_a.T)
                @ modules[name].lora_b.T
                for name, rows in x.items()
            }
        )
        return result

    def audit(self) -> Future[None]:
        """See Engine."""
        result: Future[None] = Future()
        fulfil(result, self.check_integrity)
        return result

    def stats(self) -> EngineStats:
        """See Engine."""
        with self._lock:
            running = len(self._live)
        return EngineStats(
            waiting=0,
            loading=0,
            running=running,
            total_blocks=8,
            free_blocks=8 - min(8, running),
            preemptions=0,
            cached_tokens=0,
            pool_rows=64,
            free_pool_rows=64,
            step_age=None,
            alive=self._is_alive,
        )

    def ledger(self) -> dict[str, int]:
        """See Engine."""
        with self._lock:
            return {"live_sequences": len(self._live), "reservations": len(self._reserved)}

    def check_integrity(self) -> None:
        """See Engine."""
        assert self.bank.misuse == []

    def _reply_tokens(self, request: EngineRequest) -> Iterator[int]:
        yield from self.tokenizer.encode(self.reply, add_special_tokens=False)
        yield EOS

    def _run(self, publish: Publish) -> None:
        while not self._is_stopping.is_set():
            if self.may_step.wait(0.02):
                with self._lock:
                    live = list(self._live.values())
                outputs = [output for sequence in live for output in self._step(sequence)]
                if outputs:
                    publish(outputs)
            time.sleep(STEP_SECONDS)
        with self._lock:
            live, self._live = list(self._live.values()), {}
        for sequence in live:
            self._release(sequence)
        error = Unavailable("the engine died.")
        publish([SequenceOutput(s.request.request_id, error=error) for s in live])

    def _step(self, sequence: FakeSequence) -> Iterator[SequenceOutput]:
        digests = sequence.request.digests
        if not sequence.holds_adapters:
            sequence.holds_adapters = self._adapters.hold(*digests)
        if not sequence.holds_adapters:
            if (error := self._adapters.failure(*digests)) is not None:
                yield self._end(sequence, SequenceOutput(sequence.request.request_id, error=error))
            return
        if sequence.request.score_from is not None:
            yield self._end(sequence, _scores(sequence.request))
            return
        for _ in range(self.tokens_per_step):
            output = self._next(sequence)
            yield self._end(sequence, output) if output.is_final else output
            if output.is_final:
                return

    def _next(self, sequence: FakeSequence) -> SequenceOutput:
        request = sequence.request
        if self.step_error is not None:
            return SequenceOutput(request.request_id, error=self.step_error)
        if sequence.ends_at is not None and time.monotonic() >= sequence.ends_at:
            return SequenceOutput(request.request_id, finish_reason=FinishReason.TIME_LIMIT)
        tokens: list[int] = []
        reason = None
        while reason is None and len(tokens) < self.tokens_per_output:
            tokens.append(next(sequence.tokens))
            sequence.num_output += 1
            if tokens[-1] in request.stopping.stop_token_ids:
                reason = FinishReason.STOP
            elif sequence.num_output >= request.stopping.max_output_tokens:
                reason = FinishReason.LENGTH
        is_first = sequence.num_output == len(tokens)
        return SequenceOutput(
            request.request_id,
            tuple(tokens),
            logprobs=_logprobs(tokens, request.top_logprobs),
            prompt_logprobs=_logprobs(request.prompt_token_ids[1:], request.prompt_logprobs)
            if is_first
            else (),
            finish_reason=reason,
            num_cached=1,
        )

    def _end(self, sequence: FakeSequence, output: SequenceOutput) -> SequenceOutput:
        with self._lock:
            ended = self._live.pop(sequence.request.request_id, None)
        if ended is not None:
            self._release(ended)
        return output

    def _release(self, sequence: FakeSequence) -> None:
        if sequence.holds_adapters:
            self._adapters.drop(*sequence.request.digests)
        self._adapters.release(*sequence.request.digests)


def _logprobs(tokens: Sequence[int], num_top: int | None) -> tuple[TokenLogprob, ...]:
    """Every token has -0.5 and rank 1; the most likely are 0, 1, 2, ... with -1, -2, -3, ..."""
    if num_top is None:
        return ()
    top = tuple((token, -1.0 - token) for token in range(num_top))
    return tuple(TokenLogprob(token, -0.5, 1, top) for token in tokens)


def _scores(request: EngineRequest) -> SequenceOutput:
    """Every token has the log-probability minus its id; even ids are the most likely."""
    assert request.score_from is not None
    scored = request.prompt_token_ids[request.score_from :]
    return SequenceOutput(
        request.request_id,
        prompt_logprobs=tuple(TokenLogprob(t, -float(t), rank=1 + t % 2) for t in scored),
        finish_reason=FinishReason.LENGTH,
    )
