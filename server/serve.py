"""The one place that builds a server from its parts, runs it, drains it and takes it down."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import transformers

from polygraft.adapters import failpoints
from polygraft.adapters.errors import Unavailable
from polygraft.adapters.events import EventFeed
from polygraft.adapters.pins import Pins
from polygraft.adapters.registry import Registry
from polygraft.adapters.residency import Residency
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.uploads import Uploads
from polygraft.adapters.validation_process import ValidationProcess
from polygraft.server.adapter_reader import reader_of
from polygraft.server.alias_duties import AliasParts, ResidencyEvents, build_aliases
from polygraft.server.canary_watch import CanaryWatch
from polygraft.server.config import ServerConfig
from polygraft.server.constraints.compiler import ConstraintCompiler
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import SequenceOutput
from polygraft.server.generation import TextGeneration
from polygraft.server.grpc.adapters import AdapterServicer
from polygraft.server.grpc.aliases import AliasHandlers
from polygraft.server.grpc.generation import GenerationServicer
from polygraft.server.grpc.listener import Listener
from polygraft.server.grpc.watch import WatchSender
from polygraft.server.idle_check import IdleCheck
from polygraft.server.metrics import Metrics
from polygraft.server.metrics_page import MetricsPage
from polygraft.server.outputs import OutputRouter
from polygraft.server.ports import take_port
from polygraft.server.self_test import SelfTest
from polygraft.server.stores import OpenedStore, keep_up, open_store
from polygraft.server.text import longest_token_bytes
from polygraft.server.upload_metrics import UploadMetrics
from polygraft.server.validation import RequestLimits, RequestValidator

logger = logging.getLogger(__name__)

EXIT_ENGINE_DIED = 70
_WATCH_SECONDS = 0.5
_DRAIN_POLL_SECONDS = 0.02
_STOP_GRACE_SECONDS = 1.0
_SWEEP_SECONDS = 60.0


@dataclass
class RunningServer:
    """A server that answers, and what an operator may ask of it."""

    config: ServerConfig
    port: int
    metrics_port: int
    engine: Engine
    registry: Registry
    residency: Residency
    uploads: Uploads
    self_test: SelfTest
    aliases: AliasParts
    generation: TextGeneration
    listener: Listener
    watches: WatchSender
    router: OutputRouter
    metrics: Metrics
    engine_died: asyncio.Event = field(default_factory=asyncio.Event)

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Refuse new calls and let running ones end, for `drain_timeout` s or until `hurry`."""
        await self.listener.set_serving(False)
        await asyncio.sleep(self.config.drain_delay)
        draining = Unavailable(
            "the server is shutting down.", reason="DRAINING", hint="Retry on another one."
        )
        self.listener.refuse_new(draining)
        self.watches.end_all()
        deadline = time.monotonic() + self.config.drain_timeout
        while self._is_busy() and time.monotonic() < deadline:
            if hurry is not None and hurry.is_set():
                break
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        self.router.fail_all(draining)

    def ledger(self) -> dict[str, int]:
        """Counts that return to their start once every request has ended."""
        return {
            **self.engine.ledger(),
            "live_requests": self.generation.num_live,
            "adapter_references": self.residency.total_references(),
            "running_uploads": self.uploads.num_running(),
        }

    def check_integrity(self) -> None:
        """AssertionError if the parts disagree with themselves. Call when idle."""
        self.engine.check_integrity()
        self.registry.check_integrity()
        self.residency.check_integrity()

    def is_idle(self) -> bool:
        """Whether nobody is answered and nothing is uploaded."""
        return not (self._is_busy() or self.uploads.num_running())

    def check_nothing_is_held(self) -> None:
        """AssertionError unless what requests held was given back. Call when idle."""
        self.registry.check_integrity()
        self.residency.check_integrity()
        stats = self.engine.stats()
        for what, count in (
            ("sequences live", stats.waiting + stats.running),
            ("blocks held", stats.total_blocks - stats.free_blocks),
            ("references held", self.residency.total_references()),
        ):
            assert not count, f"{count} {what}"

    async def watch(self) -> None:
        """Keep health true: NOT_SERVING while the engine makes no progress, or has died."""
        was_healthy = True
        while not self.engine_died.is_set():
            await asyncio.sleep(_WATCH_SECONDS)
            stats = self.engine.stats()
            age = stats.step_age or 0.0
            is_stuck = age > self.config.stuck_after
            is_healthy = stats.alive and not is_stuck
            if is_healthy != was_healthy:
                logger.error("health: %s", "recovered" if is_healthy else f"a step takes {age:g} s")
                await self.listener.set_serving(is_healthy)
            was_healthy = is_healthy
            if not stats.alive:
                self.router.fail_all(Unavailable("the engine has died."))
                self.engine_died.set()

    async def let_uploads_go(self) -> None:
        """Wait until cut uploads have put down what they hold; their threads are needed for it."""
        deadline = time.monotonic() + _STOP_GRACE_SECONDS
        while self.uploads.num_running() and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def sweep(self) -> None:
        """Give up uploads that nobody goes on with."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await asyncio.to_thread(self.uploads.sweep)
            except OSError as error:
                logger.error("unfinished uploads cannot be swept: %s", error)

    def _is_busy(self) -> bool:
        return self.generation.num_live > 0 or self.uploads.num_validating() > 0


@asynccontextmanager
async def run_server(
    config: ServerConfig,
    *,
    load: Callable[[str, EngineConfig], Engine] = Engine.load,
    validation: ValidationProcess | None = None,
) -> AsyncIterator[RunningServer]:
    """A server for as long as the block runs. Drain it in the block, or running calls are cut.

    `validation` checks uploads; None: a process of its own. Raises ConfigError when a port that
    was asked for is taken or the store cannot be used, and what `load` raises.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        listener = _listener(config, metrics)
        port = take_port(listener.bind, config, "port")
        metrics_port = take_port(partial(_serve_metrics, metrics, stack), config, "metrics_port")
        opened = await asyncio.to_thread(open_store, config, stack)
        if isinstance(opened.store, BucketStore):
            metrics.watch_copies(opened.store.cached_bytes, config.storage.cache_bytes)
        engine = await asyncio.to_thread(load, config.model, config.engine)
        if validation is None:
            validation = ValidationProcess(metrics.count_validation_failure)
            stack.callback(validation.close)
        server = _build(
            config, engine, metrics, listener, (port, metrics_port), opened, validation, stack
        )
        await _start(server, stack)
        yield server


def _listener(config: ServerConfig, metrics: Metrics) -> Listener:
    most = config.engine.max_running + config.engine.max_queued_requests
    return Listener(metrics, max_message_bytes=config.max_message_bytes, max_rpcs=4 * most)


def _serve_metrics(metrics: Metrics, stack: AsyncExitStack, host: str, port: int) -> int:
    page = MetricsPage(host, port, metrics.registry)
    stack.callback(page.close)
    return page.port


def _build(
    config: ServerConfig,
    engine: Engine,
    metrics: Metrics,
    listener: Listener,
    ports: tuple[int, int],
    opened: OpenedStore,
    validation: ValidationProcess,
    stack: AsyncExitStack,
) -> RunningServer:
    limits = config.adapters.limits()
    registry = Registry(opened.store, in_use=lambda digest: residency.is_wanted(digest))
    feed = EventFeed()
    keep_up(registry, opened, config.storage, metrics.store_reached, stack)
    residency = Residency(
        reader_of(registry, engine, limits, lambda digest: self_test.files(digest)),
        engine.bank,
        host_bytes=config.adapters.host_bytes,
        workers=config.adapters.load_workers,
        on_change=lambda digest: engine.wake(digest),
        observer=ResidencyEvents(feed, metrics),
        patience=config.engine.max_skip,
        pins=Pins(engine.bank, most_per_namespace=config.adapters.namespace_pin_share),
    )
    stack.callback(residency.close)
    self_test = SelfTest(
        engine,
        residency,
        timeout=config.adapters.self_test_timeout,
        is_exact=config.engine.weight_format != "int8",
        outcome=metrics.count_self_test,
    )
    uploads = Uploads(
        opened.staging,
        registry,
        engine.geometry,
        limits,
        fits=engine.bank.fits,
        prove=self_test.prove,
        validate=validation.validate,
        prepare=validation.warm,
    )
    stack.callback(uploads.close)
    metrics.registry.register(UploadMetrics(uploads))
    router = OutputRouter(asyncio.get_running_loop())
    constraints = ConstraintCompiler(
        engine.tokenizer,
        vocab_size=engine.geometry.vocab_size,
        eos_token_ids=engine.eos_token_ids,
    )
    stack.callback(constraints.close)
    canaries = CanaryWatch(
        registry, config.canary, _threads(stack, "canary", 1), feed.add, metrics.count_withdrawal
    )
    generation = TextGeneration(
        engine,
        registry,
        residency,
        router,
        RequestValidator(
            RequestLimits(),
            vocab_size=engine.geometry.vocab_size,
            context_bytes=engine.context_length * longest_token_bytes(engine.tokenizer),
        ),
        metrics,
        constraints,
        note_outcome=canaries.note,
        # Several, so that a long prompt does not hold the short ones behind it up.
        worker=_threads(stack, "encoder", 4),
        max_preparing=config.engine.max_queued_requests,
        max_answer_bytes=config.max_message_bytes,
    )
    return RunningServer(
        config=config,
        port=ports[0],
        metrics_port=ports[1],
        engine=engine,
        registry=registry,
        residency=residency,
        uploads=uploads,
        self_test=self_test,
        aliases=build_aliases(
            feed,
            registry,
            residency,
            opened.store,
            engine.geometry,
            rollback_keep=config.adapters.rollback_keep,
        ),
        generation=generation,
        listener=listener,
        watches=WatchSender(
            feed,
            registry,
            max_watches=config.adapters.max_watches,
            max_per_caller=config.adapters.max_caller_watches,
            stall_timeout=config.stall_timeout,
        ),
        router=router,
        metrics=metrics,
    )


async def _start(server: RunningServer, stack: AsyncExitStack) -> None:
    config = server.config

    def publish(outputs: list[SequenceOutput]) -> None:
        server.self_test.deliver(outputs)
        server.router.publish(outputs)

    server.engine.start(server.residency, publish)
    stack.push_async_callback(asyncio.to_thread, server.engine.stop)
    server.metrics.watch(server.engine.stats, server.residency.stats)
    adapter_io = _threads(stack, "adapter-io", 8)
    await server.listener.start(
        GenerationServicer(
            server.generation,
            server.engine,
            config.adapters.limits(),
            max_message_bytes=config.max_message_bytes,
            stall_timeout=config.stall_timeout,
        ),
        AdapterServicer(
            server.registry,
            server.residency,
            server.uploads,
            AliasHandlers(
                server.registry,
                server.aliases.promotions,
                server.aliases.scores,
                server.residency,
                adapter_io,
                base_weights_sha256=server.engine.geometry.fingerprint.weights_sha256,
            ),
            server.watches,
            server.engine.geometry,
            adapter_io,
            _threads(stack, "adapter-wait", 16),
            # Apart from the others: uploads in validation must not hold a rollback up.
            _threads(stack, "adapter-upload", config.adapters.max_uploads),
            stall_timeout=config.stall_timeout,
        ),
    )
    stack.push_async_callback(server.let_uploads_go)
    stack.push_async_callback(server.listener.stop, _STOP_GRACE_SECONDS)
    idle_check = IdleCheck(
        server.is_idle,
        server.engine.audit,
        server.check_nothing_is_held,
        server.metrics.count_integrity_failure,
        every=config.check_seconds,
    )
    for duty in (server.watch(), server.sweep(), idle_check.run()):
        stack.callback(asyncio.create_task(duty).cancel)
    await server.listener.set_serving(True)


async def serve_until_signal(
    config: ServerConfig, announce: Callable[[RunningServer], None]
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once. The exit code."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    async with run_server(config) as server:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
        announce(server)
        ends = [asyncio.create_task(event.wait()) for event in (stop, server.engine_died)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if server.engine_died.is_set():
            return EXIT_ENGINE_DIED
        stop.set()
        await server.drain(hurry)
    return 0


def serve(config: ServerConfig, announce: Callable[[RunningServer], None]) -> int:
    """Run a server in this process; `announce` is called when it answers. The exit code."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if failpoints.is_active():
        logger.error("%s is set: this server is there to be broken", failpoints.VARIABLE)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if sys.platform == "win32":
        return asyncio.run(serve_until_signal(config, announce))
    import uvloop

    return uvloop.run(serve_until_signal(config, announce))


def _threads(stack: AsyncExitStack, name: str, count: int) -> Executor:
    executor = ThreadPoolExecutor(count, thread_name_prefix=name)
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    return executor
