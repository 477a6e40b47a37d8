"""The engine: one thread that owns every tensor and runs steps.

Everybody else talks to it through queues: `submit` and `abort` in, `publish` (once per step) out.
It knows no gRPC and no text; stop strings are the front-end's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polygraft.adapters.errors import InvalidRequest, NonFinite, Unavailable
from polygraft.adapters.geometry import BaseGeometry
from polygraft.server.engine.admission import Admission
from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.commit import commit, ended
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.device.path import DevicePath
from polygraft.server.engine.drain_rate import DrainRate
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    EngineStats,
    FairShare,
    SequenceOutput,
)
from polygraft.server.engine.preparation import PreparedBase, prepare
from polygraft.server.engine.queue_caps import WaitingCount
from polygraft.server.engine.scheduler import AdapterReferences, Scheduler
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.sizing import (
    fair_rules,
    queue_caps,
    scheduler_limits,
    usable_cores,
)
from polygraft.server.engine.trial import fulfil, update_of

logger = logging.getLogger(__name__)

Publish = Callable[[list[SequenceOutput]], None]
_STOP = object()
_IDLE_WAIT = 0.05  # seconds between looks at deadlines when nothing can run


class Engine:
    """Continuous batching over one frozen base. Build it with `Engine.load`.

    `submit`, `abort`, `wake`, `audit`, `stats` and `ledger` may be called from any thread; the rest
    belongs to whoever builds and stops the engine.
    """

    def __init__(self, prepared: PreparedBase, config: EngineConfig) -> None:
        self.base = base = prepared.base
        self.config = config
        self.bank = prepared.bank
        self._runner = runner = prepared.runner
        self._builder = prepared.builder
        self._blocks = BlockPool(runner.cache.num_cells // config.block_size)
        self._intake: SimpleQueue[Sequence | str | object] = SimpleQueue()
        self._admission = Admission(
            vocab_size=base.geometry.vocab_size,
            context_length=self.context_length,
        )
        self._drain_rate = DrainRate()
        self._queue = WaitingCount(queue_caps(config), self._drain_rate)
        self._lock = threading.Lock()  # guards the two below
        self._live: dict[str, Sequence] = {}
        self._is_alive = False
        self._step_started: float | None = None
        self._thread: threading.Thread | None = None
        self._has_workers = threading.Event()
        self._adapters: AdapterReferences
        self._publish: Publish
        self._scheduler: Scheduler

    @classmethod
    def load(
        cls, base: str | Path, config: EngineConfig, *, path: DevicePath | None = None
    ) -> Engine:
        """Load a base, prove that it is computed exactly, and size cache and pools.

        path: as `prepare`. Raises ModelRefused when the architecture cannot be served,
        InvalidRequest when the base or the device is not found.
        """
        return cls(prepare(base, config, path), config)

    @property
    def geometry(self) -> BaseGeometry:
        """What adapters are checked against."""
        return self.base.geometry

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return self.base.tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a sequence unless the request ignores them."""
        return self.base.eos_token_ids

    @property
    def context_length(self) -> int:
        """Positions of one sequence at most: virtual, prompt and output tokens."""
        return min(self.base.context_length, self._blocks.num_blocks * self.config.block_size)

    def fits_together(self, ranks: Iterable[int]) -> str | None:
        """None if LoRAs of these largest ranks can be on the device at once, else why not."""
        return self.bank.fits_together(ranks)

    def attach(self, adapters: AdapterReferences, publish: Publish) -> None:
        """Say where adapters come from and where outputs go; `publish` is called once per step."""
        self._adapters = adapters
        self._publish = publish
        self._scheduler = Scheduler(
            scheduler_limits(self.config),
            self._blocks,
            adapters,
            prefix_cache=self.config.prefix_cache,
            window=self._runner.cache.window,
            fairness=fair_rules(self.config),
            columns=self._rank_columns,
        )
        with self._lock:
            self._is_alive = True

    def start(self, adapters: AdapterReferences, publish: Publish) -> None:
        """Attach, and start the engine thread, from which `publish` is called."""
        self.attach(adapters, publish)
        self._thread = threading.Thread(target=self._run, name="polygraft-engine", daemon=True)
        self._thread.start()
        self._has_workers.wait()
        torch.set_num_threads(1)  # for the threads to come; the engine thread keeps its own number

    def stop(self) -> None:
        """End the thread; live requests get Unavailable. Idempotent."""
        self._intake.put(_STOP)
        if self._thread is not None:
            self._thread.join()

    def wake(self, digest: str) -> None:
        """A version became ready or could not be loaded: look at those that wait for it."""
        self._intake.put(lambda: self._scheduler.adapter_changed(digest))

    def submit(self, request: EngineRequest) -> None:
        """Queue a request whose adapters the caller has acquired; on success the engine owns the
        references and releases them when the sequence ends.

        Raises InvalidRequest (what can never run), Overloaded (queue full), DeadlineExpired (it
        cannot begin in time), Unavailable.
        """
        self._admission.check(request)
        sequence = Sequence(request, block_size=self.config.block_size)
        with self._lock:
            if not self._is_alive:
                raise Unavailable("the engine is not running.")
            if request.request_id in self._live:
                raise InvalidRequest("this request id is already running.", item="request_id")
            self._queue.enter(request, time.monotonic())
            self._live[request.request_id] = sequence
        self._intake.put(sequence)

    def reserve(
        self, reservation: str, share: FairShare, *, num_requests: int, num_tokens: int
    ) -> None:
        """Room in the queue for prompts that are not tokenised yet: so many at most. It is given
        back by `unreserve`, just before the requests themselves are submitted.

        Raises Overloaded.
        """
        self._queue.reserve(reservation, share, num_requests=num_requests, num_tokens=num_tokens)

    def unreserve(self, reservation: str) -> None:
        """Give a reservation back. Idempotent."""
        self._queue.leave(reservation)

    def abort(self, request_id: str) -> None:
        """End a request in any state. Unknown and finished ids are ignored."""
        self._intake.put(request_id)

    def try_update(self, digest: str, x: Mapping[str, Tensor]) -> Future[dict[str, Tensor]]:
        """What a version adds to the outputs of linear modules of these names for inputs
        [num_rows, in_features] of the serving dtype: by the kernels and from the rows that serve,
        between two steps. Outputs as `trial.update_of`. The caller keeps it on the device.
        """
        result: Future[dict[str, Tensor]] = Future()
        run = partial(update_of, self._runner.sites, self._builder, AdapterShare(digest), x)
        self._intake.put(lambda: fulfil(result, run))
        return result

    def audit(self) -> Future[None]:
        """`check_integrity` between two steps; the AssertionError is the future's."""
        result: Future[None] = Future()
        self._intake.put(lambda: fulfil(result, self.check_integrity))
        return result

    def stats(self) -> EngineStats:
        """A snapshot for metrics and health."""
        started, scheduler = self._step_started, self._scheduler
        running = len(scheduler.running)
        return EngineStats(
            waiting=len(self._live) - running,
            loading=scheduler.waiting.num_loading,
            running=running,
            total_blocks=self._blocks.num_blocks,
            free_blocks=self._blocks.num_free,
            preemptions=scheduler.num_preemptions,
            cached_tokens=scheduler.placement.num_cached_tokens,
            pool_rows=self.bank.num_rows,
            free_pool_rows=self.bank.num_free_rows,
            step_age=None if started is None else time.monotonic() - started,
            alive=self._is_alive,
            queue=replace(scheduler.stats(), deadlines_refused=self._queue.num_deadlines_refused),
            speculation=scheduler.drafting.stats(),
            device=self._runner.counts(),
        )

    def ledger(self) -> dict[str, int]:
        """Counts that return to their start once every request has ended."""
        return {
            "free_blocks": self._blocks.num_free,
            "live_sequences": len(self._live),
            "queued_requests": self._queue.num_requests,
            "queued_tokens": self._queue.num_tokens,
        }

    def check_integrity(self) -> None:
        """Raise AssertionError if blocks, rows and queues disagree. Call when idle."""
        self._scheduler.check_integrity()
        self._queue.check_integrity()
        self.bank.check_integrity()

    def _rank_columns(self, digest: str) -> int:
        """What a resident version adds to a step; a soft prompt adds nothing."""
        rows = self.bank.rows(digest)
        return 0 if rows is None else rows.count

    def _run(self) -> None:
        """The engine thread."""
        torch.set_num_threads(self.config.threads or usable_cores())
        torch.get_num_threads()  # makes it this thread's own; else its first operation asks again
        self._has_workers.set()
        try:
            is_idle = True
            while self._take_in(wait=is_idle):
                is_idle = not self._step()
        except Exception as error:
            logger.exception("the engine died")
            self._end_all(Unavailable(f"the engine died: {error}"))
        else:
            stopping = Unavailable("the server is stopping.", reason="DRAINING")
            self._end_all(stopping)

    def _take_in(self, *, wait: bool) -> bool:
        """Drain the intake queue; False after `stop`."""
        with suppress(Empty):
            item = self._intake.get(block=wait, timeout=_IDLE_WAIT)
            while item is not _STOP:
                if isinstance(item, Sequence):
                    self._scheduler.add(item)
                elif isinstance(item, str):
                    self._scheduler.abort(item)
                elif callable(item):
                    item()
                item = self._intake.get_nowait()
            return False
        return True

    def step(self) -> bool:
        """Take in what was queued and run one step, on the caller's thread. For tests and tools
        that drive the engine themselves (`attach` instead of `start`). False: nothing could run.
        """
        self._take_in(wait=False)
        return self._step()

    def _step(self) -> bool:
        """Schedule, run, commit, publish. False when nothing could run."""
        self._step_started = now = time.monotonic()
        for digest in self.bank.take_freed():
            self._blocks.unpin(digest)
        outputs = [ended(sequence) for sequence in self._scheduler.sweep(now)]
        chunks = self._scheduler.plan(now)
        if chunks:
            self._write_prefixes(chunks)
            batch = self._builder.build(chunks)
            outputs += commit(chunks, batch, self._runner.run(batch))
        self._measure_queue(chunks, time.monotonic() - now)
        self._settle(chunks, outputs)
        if outputs:
            self._publish(outputs)
        self._step_started = None
        return bool(chunks)

    def _write_prefixes(self, chunks: list[Chunk]) -> None:
        """Bring ready-made keys and values into the cache, as far as they were not found there."""
        for sequence in (chunk.sequence for chunk in chunks):
            start, end = sequence.num_written, sequence.request.num_prefix
            if start < end:
                prefix = self.bank.prefix_of(sequence.digests)
                self._runner.cache.write_layers(
                    sequence.cells(start, end), prefix[..., start:end, :]
                )
                sequence.num_written = end

    def _measure_queue(self, chunks: list[Chunk], seconds: float) -> None:
        """What began in this step waits no more; how fast that goes is only seen under load."""
        begun = [self._queue.num_tokens_of(chunk.sequence.id) for chunk in chunks]
        for chunk in chunks:
            self._queue.leave(chunk.sequence.id)
        if chunks and self._scheduler.waiting.num_in_line:
            num_requests = sum(tokens > 0 for tokens in begun)
            self._drain_rate.record(seconds, num_requests=num_requests, num_tokens=sum(begun))

    def _settle(self, chunks: list[Chunk], outputs: list[SequenceOutput]) -> None:
        """Give back what ended sequences hold, before anybody hears of their end."""
        finite = {output.request_id for output in outputs if output.error is None}
        for chunk in chunks:
            self._scheduler.computed(chunk.sequence, is_finite=chunk.sequence.id in finite)
            if chunk.draft and not any(o.request_id == chunk.sequence.id for o in outputs):
                start = chunk.sequence.num_computed  # all that a draft left when it was not finite
                self._runner.cache.clear(chunk.sequence.cells(start, start + chunk.num_tokens))
        for output in outputs:
            sequence = self._live[output.request_id]
            if isinstance(output.error, NonFinite):
                self._clear_cells(sequence)
            if output.is_final:
                self._scheduler.finish(sequence)
                self._forget(sequence)

    def _clear_cells(self, sequence: Sequence) -> None:
        """Zero what only this sequence can read: the next owner's masked reads must be finite."""
        size = self.config.block_size
        for index, block in enumerate(sequence.blocks):
            if self._blocks.is_private(block):
                self._runner.cache.clear(sequence.cells(index * size, (index + 1) * size))

    def _forget(self, sequence: Sequence) -> None:
        self._queue.leave(sequence.id)
        with self._lock:
            del self._live[sequence.id]
        if sequence.holds_adapters:
            self._adapters.drop(*sequence.digests)
        self._adapters.release(*sequence.digests)

    def _end_all(self, error: Exception) -> None:
        """Nobody is left waiting for an answer that will not come."""
        with self._lock:
            self._is_alive = False  # from here on `submit` refuses
            live = list(self._live.values())
        for sequence in live:
            self._scheduler.finish(sequence)
            self._forget(sequence)
        if live:
            self._publish([SequenceOutput(sequence.id, error=error) for sequence in live])
