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

from polygraft.adapters.errors import DeadlineExpired, Overloaded, Unavailable
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.server.answer import Answer
from polygraft.server.encoding import PromptEncoder
from polygraft.server.engine.messages import EngineRequest, SequenceOutput
from polygraft.server.engine_port import EnginePort, References
from polygraft.server.metrics import Metrics
from polygraft.server.outputs import OutputQueue, OutputRouter
from polygraft.server.planning import Planner, stop_sequences
from polygraft.server.requests import (
    ContinuationScore,
    GenerateRequest,
    Input,
    ScoredToken,
    ScoreRequest,
    Usage,
)
from polygraft.server.text import IncrementalDetokenizer, StopSequenceFilter, TokenDecoder
from polygraft.server.validation import RequestValidator

T = TypeVar("T")


class TextGeneration:
    """Answers requests. Methods belong to the event loop that `router` delivers to.

    `worker` runs what would hold the loop up: tokenising. At most
    `max_preparing` requests wait for it at a time; the engine bounds those behind it.
    """

    def __init__(
        self,
        engine: EnginePort,
        registry: Registry,
        adapters: References,
        router: OutputRouter,
        validator: RequestValidator,
        metrics: Metrics,
        *,
        worker: Executor,
        max_preparing: int,
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
        self._worker = worker
        self._max_preparing = max_preparing
        self._num_preparing = 0
        self._decoder = TokenDecoder(engine.tokenizer)

    @property
    def num_live(self) -> int:
        """Requests that are being prepared, queued or answered."""
        return self._num_preparing + len(self._router)

    @asynccontextmanager
    async def begin(
        self, request: GenerateRequest, request_id: str, *, deadline: float | None = None
    ) -> AsyncIterator[Answer]:
        """An answer being made, for as long as the block runs.

        `deadline` is on the monotonic clock; DeadlineExpired is raised inside the block then.
        """
        arrived_at = time.monotonic()
        self._admit()
        self._validator.check_generate(request)
        async with until(deadline):
            version = self._resolve(request.adapter)
            prompt = await self._prepare(self._encoder.encode, request.input, version)
            job = self._planner.plan_generation(
                request, prompt, version, request_id=request_id, arrived_at=arrived_at
            )
            with self._running([job]) as [queue]:
                answer = Answer(
                    job,
                    version,
                    queue,
                    IncrementalDetokenizer(self._decoder),
                    StopSequenceFilter(stop_sequences(request.stopping, prompt.recipe)),
                    self._metrics.start_generation(arrived_at),
                )
                with self._counted(answer):
                    yield answer

    async def score(
        self, request: ScoreRequest, request_id: str, *, deadline: float | None = None
    ) -> tuple[VersionRecord | None, list[ContinuationScore]]:
        """The version that scored, and one score for each item in the same order."""
        self._admit()
        self._validator.check_score(request)
        async with until(deadline):
            version = self._resolve(request.adapter)
            items = await self._prepare(self._encoder.encode_items, request.items, version)
            jobs = self._planner.plan_scoring(items, version, request_id=request_id)
            with self._running(jobs) as queues:
                pairs = zip(jobs, queues, strict=True)
                return version, [await _collect_scores(job, queue) for job, queue in pairs]

    async def tokenize(self, adapter: str, value: Input) -> tuple[int, ...]:
        """The token ids that `begin` would submit."""
        self._admit()
        self._validator.check_reference(adapter)
        self._validator.check_input(value, base_only=not adapter)
        prompt = await self._prepare(self._encoder.encode, value, self._resolve(adapter))
        return prompt.token_ids

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        self._admit()
        self._validator.check_token_ids("token_ids", token_ids)
        decode = partial(self._encoder.decode, skip_special_tokens=skip_special_tokens)
        return await self._prepare(decode, token_ids)

    def _resolve(self, adapter: str) -> VersionRecord | None:
        """The version a reference names now; None for "". Raises AdapterNotFound."""
        return self._registry.resolve(adapter) if adapter else None

    def _admit(self) -> None:
        if self._num_preparing >= self._max_preparing:
            raise Overloaded(
                f"{self._num_preparing} requests wait to be tokenised, the limit of this server.",
                allowed=self._max_preparing,
                hint="Retry later.",
            )

    async def _prepare(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` in the worker's thread."""
        self._num_preparing += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, work, *arguments)
        finally:
            self._num_preparing -= 1

    @contextmanager
    def _running(self, jobs: Sequence[EngineRequest]) -> Iterator[list[OutputQueue]]:
        """Submit jobs, all or none; at the end nothing of them is left, here or in the engine."""
        try:
            yield [self._submit(job) for job in jobs]
        finally:
            for job in jobs:
                self._router.close(job.request_id)
                self._engine.abort(job.request_id)

    def _submit(self, job: EngineRequest) -> OutputQueue:
        queue = self._router.open(job.request_id)
        self._adapters.acquire(*job.digests)
        try:
            self._engine.submit(job)
        except BaseException:
            self._adapters.release(*job.digests)
            raise
        self._metrics.count_prompt(Usage(len(job.prompt_token_ids), job.num_virtual))
        return queue

    @contextmanager
    def _counted(self, answer: Answer) -> Iterator[None]:
        kind = answer.version.manifest.kind if answer.version else "base"
        ending = "error"
        try:
            yield
            ending = answer.ending.value if answer.ending else "cancelled"
        except (asyncio.CancelledError, GeneratorExit, DeadlineExpired):
            ending = "cancelled"
            raise
        finally:
            self._metrics.count_answer(kind, ending)


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


async def _collect_scores(job: EngineRequest, queue: OutputQueue) -> ContinuationScore:
    outputs: list[SequenceOutput] = []
    while not (outputs and outputs[-1].is_final):
        outputs += [delivery.output for delivery in await queue.take()]
    last = outputs[-1]
    if last.error is not None:
        raise last.error
    assert job.score_from is not None
    targets = job.prompt_token_ids[job.score_from :]
    if len(last.prompt_logprobs) != len(targets):
        raise Unavailable("the server ended this request.", reason="DRAINING")
    return ContinuationScore(
        tokens=tuple(
            ScoredToken(scored.token_id, scored.logprob, is_greedy=scored.rank == 1)
            for scored in last.prompt_logprobs
        ),
        usage=Usage(len(job.prompt_token_ids), job.num_virtual, cached_tokens=last.num_cached),
    )
