"""Generation and scoring for one base and its adapters: check, resolve, encode, submit, clean up.

Knows no gRPC: the servicer translates. Whatever way a request ends, its queue is closed, its
sequence aborted and its adapter references given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar

from polygraft.adapters.alias_records import AliasRecord
from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    DeadlineExpired,
    NonFinite,
    Overloaded,
    PolygraftError,
    Unavailable,
)
from polygraft.adapters.registry import Registry
from polygraft.server.answer import Answer
from polygraft.server.answer_size import check_answer_size
from polygraft.server.applied import AppliedAdapters, resolve_adapters
from polygraft.server.choice import ChoiceReader
from polygraft.server.constraints.compiler import ConstraintCompiler
from polygraft.server.encoding import PromptEncoder
from polygraft.server.engine.messages import EngineRequest, SequenceOutput
from polygraft.server.engine_port import EnginePort, References
from polygraft.server.metrics import Metrics
from polygraft.server.outputs import OutputQueue, OutputRouter
from polygraft.server.planning import Caller, Planner, stop_sequences
from polygraft.server.requests import (
    AdapterSelection,
    ContinuationScore,
    GenerateRequest,
    Input,
    ScoreRequest,
    Usage,
)
from polygraft.server.sizes import input_size, item_sizes
from polygraft.server.text import IncrementalDetokenizer, StopSequenceFilter, TokenDecoder
from polygraft.server.validation import RequestValidator

T = TypeVar("T")
NoteOutcome = Callable[[AliasRecord, str, float | None], None]
"""Told which version an alias chose, and in how many seconds it answered; None: it failed."""


class TextGeneration:
    """Answers requests. Methods belong to the event loop that `router` delivers to.

    `worker` runs what would hold the loop up: tokenising. At most
    `max_preparing` requests wait for it at a time; the engine bounds those behind it.
    `max_answer_bytes` bounds one message of an answer.
    """

    def __init__(
        self,
        engine: EnginePort,
        registry: Registry,
        adapters: References,
        router: OutputRouter,
        validator: RequestValidator,
        metrics: Metrics,
        constraints: ConstraintCompiler,
        *,
        note_outcome: NoteOutcome = lambda alias, digest, seconds: None,
        worker: Executor,
        max_preparing: int,
        max_answer_bytes: int,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._adapters = adapters
        self._encoder = PromptEncoder(engine.tokenizer)
        self._planner = Planner(
            eos_token_ids=engine.eos_token_ids, context_length=engine.context_length
        )
        self._router = router
        self._validator = validator
        self._metrics = metrics
        self._constraints = constraints
        self._note_outcome = note_outcome
        self._worker = worker
        self._max_preparing = max_preparing
        self._max_answer_bytes = max_answer_bytes
        self._num_preparing = 0
        self._decoder = TokenDecoder(engine.tokenizer)

    @property
    def num_live(self) -> int:
        """Requests that are being prepared, queued or answered."""
        return self._num_preparing + len(self._router)

    @asynccontextmanager
    async def begin(
        self,
        request: GenerateRequest,
        request_id: str,
        *,
        is_stream: bool = False,
        deadline: float | None = None,
    ) -> AsyncIterator[Answer]:
        """An answer being made, for as long as the block runs; sent in pieces or as one message.

        `deadline` is on the monotonic clock; DeadlineExpired is raised inside the block then.
        """
        caller = Caller(request_id, time.monotonic(), deadline)
        self._validator.check_generate(request)
        async with until(deadline):
            adapters = self._resolve(request.adapters, request.sticky_key or request_id)
            detokenizer, echo = IncrementalDetokenizer(self._decoder), ""
            sizes = [input_size(request.input)] * (request.sampling.n or 1)
            with self._reserved(caller, adapters, sizes):
                constraint = None
                if request.constraint is not None:
                    constraint = await self._constraints.compile(request.constraint)
                prompt = await self._prepare(self._encoder.encode, request.input, adapters)
                if request.output.echo:
                    echo = await self._prepare(detokenizer.read, prompt.token_ids)
            jobs = self._planner.plan_generation(request, prompt, adapters, caller, constraint)
            check_answer_size(jobs, is_stream=is_stream, max_bytes=self._max_answer_bytes)
            stops = stop_sequences(request.stopping, prompt.recipe)
            choices = [
                ChoiceReader(index, job, detokenizer.fork(), StopSequenceFilter(stops), echo)
                for index, job in enumerate(jobs)
            ]
            with self._running(jobs) as queue:
                start_timer = partial(self._metrics.start_generation, caller.arrived_at)
                answer = Answer(choices, adapters, queue, self._engine.abort, start_timer)
                with self._counted(answer, caller.arrived_at):
                    yield answer

    async def score(
        self, request: ScoreRequest, request_id: str, *, deadline: float | None = None
    ) -> tuple[AppliedAdapters, list[list[ContinuationScore]]]:
        """The versions that scored, and the scores of each item's continuations in their order."""
        caller = Caller(request_id, time.monotonic(), deadline)
        self._validator.check_score(request)
        async with until(deadline):
            adapters = self._resolve(request.adapters, request.sticky_key or request_id)
            sizes = [size for item in request.items for size in item_sizes(item)]
            with self._reserved(caller, adapters, sizes):
                items = await self._prepare(self._encoder.encode_items, request.items, adapters)
            jobs = self._planner.plan_scoring(items, adapters, caller, request.priority)
            with self._running([job for group in jobs for job in group]) as queue:
                scores = await _collect_scores(queue, jobs)
                return adapters, [[scores[job.request_id] for job in group] for group in jobs]

    async def tokenize(self, value: Input, adapters: AdapterSelection) -> tuple[int, ...]:
        """The token ids that `begin` would submit."""
        self._validator.check_tokenize(value, adapters)
        applied = self._resolve(adapters, None)
        return (await self._prepare(self._encoder.encode, value, applied)).token_ids

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        self._validator.check_detokenize(token_ids)
        decode = partial(self._encoder.decode, skip_special_tokens=skip_special_tokens)
        return await self._prepare(decode, token_ids)

    def _resolve(self, selection: AdapterSelection, request_key: str | None) -> AppliedAdapters:
        fits_together = self._engine.fits_together
        applied = resolve_adapters(selection, self._registry, fits_together, request_key)
        self._adapters.check_room(applied.ranks)
        return applied

    @contextmanager
    def _reserved(
        self, caller: Caller, adapters: AppliedAdapters, sizes: Sequence[int]
    ) -> Iterator[None]:
        """Room in the engine's queue for prompts of `sizes` bytes, while they are tokenised.

        Why: a request that the queue has no room for is refused before work is done for it.
        """
        most = self._engine.context_length  # no token is shorter than a byte
        self._engine.reserve(
            caller.request_id,
            adapters.fair_share,
            num_requests=len(sizes),
            num_tokens=sum(min(size, most) for size in sizes),
        )
        try:
            yield
        finally:
            self._engine.unreserve(caller.request_id)

    async def _prepare(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` in the worker's thread. Raises Overloaded if too many wait for it."""
        if self._num_preparing >= self._max_preparing:
            raise Overloaded(
                f"{self._num_preparing} requests wait to be tokenised, the limit of this server.",
                allowed=self._max_preparing,
                hint="Retry later.",
            )
        self._num_preparing += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, work, *arguments)
        finally:
            self._num_preparing -= 1

    @contextmanager
    def _running(self, jobs: Sequence[EngineRequest]) -> Iterator[OutputQueue]:
        """Submit jobs, all or none; at the end nothing of them is left, here or in the engine."""
        ids = [job.request_id for job in jobs]
        queue = self._router.open(*ids)
        try:
            for job in jobs:
                self._submit(job)
            yield queue
        finally:
            for request_id in ids:
                self._router.close(request_id)
                self._engine.abort(request_id)

    def _submit(self, job: EngineRequest) -> None:
        self._adapters.acquire(*job.digests)
        try:
            self._engine.submit(job)
        except BaseException:
            self._adapters.release(*job.digests)
            raise
        self._metrics.count_prompt(Usage(len(job.prompt_token_ids), job.num_virtual))

    def _note(self, answer: Answer, seconds: float | None) -> None:
        for version in answer.adapters.versions:
            if version.alias is not None:
                self._note_outcome(version.alias, version.record.digest, seconds)

    @contextmanager
    def _counted(self, answer: Answer, arrived_at: float) -> Iterator[None]:
        otherwise = "error"
        try:
            yield
            otherwise = "cancelled"
            if answer.is_complete:
                self._note(answer, time.monotonic() - arrived_at)
        except (asyncio.CancelledError, GeneratorExit, DeadlineExpired):
            otherwise = "cancelled"
            raise
        except Exception as error:
            if is_fault(error):
                self._note(answer, None)
            raise
        finally:
            for choice in answer.choices:
                ending = choice.ending.value if choice.ending else otherwise
                self._metrics.count_answer(answer.adapters.kind, ending)


def is_fault(error: Exception) -> bool:
    """Whether an answer failed by the version or a bug, not by the request or the load."""
    faults = (NonFinite, AdapterInvalid, AdapterIncompatible)
    return isinstance(error, faults) or not isinstance(error, PolygraftError)


@asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Raise DeadlineExpired in the block at `deadline`, or at once if it has passed."""
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        raise DeadlineExpired("the deadline had passed when the request arrived.")
    try:
        async with asyncio.timeout(remaining):
            yield
    except TimeoutError as error:
        raise DeadlineExpired("the deadline passed; the request was ended.") from error


async def _collect_scores(
    queue: OutputQueue, jobs: Sequence[Sequence[EngineRequest]]
) -> dict[str, ContinuationScore]:
    """The score of every job, by request id. Raises the error that ended one of them."""
    waiting = {job.request_id: job for group in jobs for job in group}
    scores = {}
    while waiting:
        for output in (delivery.output for delivery in await queue.take()):
            if output.is_final:
                job = waiting.pop(output.request_id)
                scores[output.request_id] = _score_of(job, output)
    return scores


def _score_of(job: EngineRequest, output: SequenceOutput) -> ContinuationScore:
    if output.error is not None:
        raise output.error
    assert job.score_from is not None
    if len(output.prompt_logprobs) != len(job.prompt_token_ids) - job.score_from:
        raise Unavailable("the server ended this request.", reason="DRAINING")
    return ContinuationScore(
        tokens=output.prompt_logprobs,
        usage=Usage(len(job.prompt_token_ids), job.num_virtual, cached_tokens=output.num_cached),
    )
