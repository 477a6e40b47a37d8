"""What Prometheus scrapes. One registry per server, no label that a client can invent.

Counters and histograms are written where things happen; gauges are read from the engine and the
residency when they are scraped.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polygraft import __version__
from polygraft.adapters.residency import ResidencyStats, Tier
from polygraft.server.device_metrics import device_metrics
from polygraft.server.engine.messages import EngineStats
from polygraft.server.outputs import Delivery
from polygraft.server.queue_metrics import queue_metrics
from polygraft.server.requests import Usage

_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_TOKEN_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0),
)
_LOAD_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

ADAPTER_KINDS = ("base", "lora", "soft_prompt", "prefix", "composition")
WITHDRAWALS = ("withdrawn", "moved_before", "failed")
SELF_TEST_OUTCOMES = ("proven", "unproven", "failed")
FINISH_REASONS = ("stop", "length", "time_limit", "cancelled", "error")
VALIDATION_FAILURES = ("memory", "cpu", "time", "crash", "error")


class Metrics:
    """Every series of a server. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Calls answered, by method and gRPC status code.", "method", "code"
        )
        self._errors = self._counter("errors", "Calls refused or failed, by reason.", "reason")
        self._answers = self._counter(
            "answers",
            "Generations ended, by adapter kind and why.",
            "adapter_kind",
            "finish_reason",
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of accepted prompts.")
        self._virtual_tokens = self._counter(
            "virtual_tokens", "Soft-prompt positions in front of accepted prompts."
        )
        self.output_tokens = self._counter("output_tokens", "Tokens generated for answers.")
        self._loads = self._counter("adapter_loads", "Versions brought to a tier.", "tier")
        self._evictions = self._counter(
            "adapter_evictions", "Versions evicted from a tier.", "tier"
        )
        self._self_tests = self._counter(
            "adapter_self_tests", "Uploads that were run before publishing.", "outcome"
        )
        self._withdrawals = self._counter(
            "canary_withdrawals", "Canaries that did worse than the version in charge.", "outcome"
        )
        self._validation_failures = self._counter(
            "validation_failures",
            "Processes for checking uploads that were lost and replaced, by cause.",
            "cause",
        )
        self._integrity_failures = self._counter(
            "integrity_failures", "Idle times in which counts of memory or references disagreed."
        )
        self._store_up = Gauge(
            "polygraft_store_up", "1 while the store answers.", registry=self.registry
        )
        self._store_up.set(1)
        self._seconds = self._histogram(
            "request_duration_seconds",
            "Whole time of successful calls.",
            _LATENCY_BUCKETS,
            "method",
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _LATENCY_BUCKETS
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN_BUCKETS
        )
        self.queue = self._histogram(
            "queue_duration_seconds", "From submission to the first step.", _LATENCY_BUCKETS
        )
        self._load_seconds = self._histogram(
            "adapter_load_seconds", "Time to bring a version to a tier.", _LOAD_BUCKETS, "tier"
        )
        build = Gauge(
            "polygraft_build_info",
            "Always 1; the labels say what runs.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self._start_known_series()

    def count_call(self, method: str, code: str, seconds: float) -> None:
        """One RPC ended. `method` is a name of the wire contract, `code` a gRPC status name."""
        self._requests.labels(method, code).inc()
        if code == "OK":
            self._seconds.labels(method).observe(seconds)

    def count_error(self, reason: str) -> None:
        """One RPC failed with a domain error of this code."""
        self._errors.labels(reason).inc()

    def count_prompt(self, usage: Usage) -> None:
        """A prompt was accepted by the engine."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._virtual_tokens.inc(usage.virtual_tokens)

    def count_answer(self, adapter_kind: str, finish_reason: str) -> None:
        """One generation ended; see ADAPTER_KINDS and FINISH_REASONS."""
        self._answers.labels(adapter_kind, finish_reason).inc()

    def start_generation(self, arrived_at: float) -> GenerationTimer:
        """A stopwatch for one answer; `arrived_at` on the monotonic clock."""
        return GenerationTimer(self, arrived_at)

    def loaded(self, digest: str, tier: Tier, seconds: float) -> None:
        """A version reached a tier (ResidencyObserver)."""
        self._loads.labels(tier.value).inc()
        self._load_seconds.labels(tier.value).observe(seconds)

    def evicted(self, digest: str, tier: Tier) -> None:
        """A version left a tier to make room (ResidencyObserver)."""
        self._evictions.labels(tier.value).inc()

    def count_self_test(self, passed: bool, proven: bool) -> None:
        """An upload was run. `proven`: by its own probes."""
        proven_or_not, failed = SELF_TEST_OUTCOMES[:2], SELF_TEST_OUTCOMES[2]
        self._self_tests.labels(proven_or_not[not proven] if passed else failed).inc()

    def count_withdrawal(self, outcome: str) -> None:
        """The watchdog acted on a canary; see WITHDRAWALS."""
        self._withdrawals.labels(outcome).inc()

    def count_validation_failure(self, cause: str) -> None:
        """The process that checks uploads was lost; see VALIDATION_FAILURES."""
        self._validation_failures.labels(cause).inc()

    def count_integrity_failure(self) -> None:
        """Something was lost or counted twice: a bug, told in the log."""
        self._integrity_failures.inc()

    def store_reached(self, is_reached: bool) -> None:
        """Whether the store answered when it was last asked."""
        self._store_up.set(is_reached)

    def watch_copies(self, num_bytes: Callable[[], int], limit: int) -> None:
        """Read at each scrape how much of a remote store is copied to this machine."""
        for name, text, value in (
            ("bytes", "Bytes of files of a remote store on this disk.", num_bytes),
            ("bytes_limit", "Bytes that these may take.", lambda: limit),
        ):
            gauge = Gauge(f"polygraft_store_cache_{name}", text, registry=self.registry)
            gauge.set_function(value)

    def watch(
        self, engine: Callable[[], EngineStats], adapters: Callable[[], ResidencyStats]
    ) -> None:
        """Read these gauges at each scrape."""
        self.registry.register(_LiveGauges(engine, adapters))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"polygraft_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"polygraft_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _start_known_series(self) -> None:
        """Rates need a first point: series that are sure to come begin at 0."""
        for kind in ADAPTER_KINDS:
            for reason in FINISH_REASONS:
                self._answers.labels(kind, reason)
        for outcome in SELF_TEST_OUTCOMES:
            self._self_tests.labels(outcome)
        for outcome in WITHDRAWALS:
            self._withdrawals.labels(outcome)
        for cause in VALIDATION_FAILURES:
            self._validation_failures.labels(cause)
        for tier in (Tier.HOST, Tier.DEVICE):
            self._loads.labels(tier.value)
            self._evictions.labels(tier.value)


class GenerationTimer:
    """Times the tokens of one answer by when the engine published them."""

    def __init__(self, metrics: Metrics, arrived_at: float) -> None:
        self._metrics = metrics
        self._arrived_at = arrived_at
        self._last_at: float | None = None

    def record(self, delivery: Delivery) -> None:
        """Take note of one output."""
        count = len(delivery.output.token_ids)
        if not count:
            return
        self._metrics.output_tokens.inc(count)
        if self._last_at is None:
            self._metrics.first_token.observe(delivery.published_at - self._arrived_at)
            self._metrics.queue.observe(delivery.output.queue_seconds)
        else:
            self._metrics.inter_token.observe((delivery.published_at - self._last_at) / count)
        self._last_at = delivery.published_at


class _LiveGauges(Collector):
    """Gauges of the engine and the residency, read when scraped."""

    def __init__(
        self, engine: Callable[[], EngineStats], adapters: Callable[[], ResidencyStats]
    ) -> None:
        self._engine = engine
        self._adapters = adapters

    def collect(self) -> Iterable[Metric]:
        stats = self._engine()
        yield CounterMetricFamily(
            "polygraft_cached_tokens", "Positions read from the prefix cache.", stats.cached_tokens
        )
        yield CounterMetricFamily(
            "polygraft_preemptions", "Sequences set back to make room.", stats.preemptions
        )
        yield CounterMetricFamily(
            "polygraft_drafted_tokens", "Tokens guessed.", stats.speculation.drafted
        )
        yield CounterMetricFamily(
            "polygraft_accepted_tokens", "Guesses that were right.", stats.speculation.accepted
        )
        yield from queue_metrics(stats.queue)
        yield from device_metrics(stats.device)
        for name, text, value in _engine_gauges(stats):
            yield GaugeMetricFamily(f"polygraft_{name}", text, value=value)
        resident = GaugeMetricFamily(
            "polygraft_adapters_resident", "Adapter versions by tier.", labels=["tier"]
        )
        adapters = self._adapters()
        for tier, count in adapters.tiers.items():
            resident.add_metric([tier.value], count)
        yield resident
        for name, text, value in (
            ("host_bytes", "Bytes of the copies on the host.", adapters.host_bytes),
            ("host_bytes_limit", "Bytes that these may take.", adapters.host_bytes_limit),
            ("rows_pinned", "Rank rows of pinned versions.", adapters.pinned.rank_rows),
        ):
            yield GaugeMetricFamily(f"polygraft_adapter_{name}", text, value=value)


def _engine_gauges(stats: EngineStats) -> Iterator[tuple[str, str, float]]:
    yield "sequences_waiting", "Sequences not yet admitted to a step.", stats.waiting
    yield "sequences_loading", "Of those, waiting for their adapter.", stats.loading
    yield "sequences_running", "Sequences in the running batch.", stats.running
    yield "kv_blocks", "Blocks of the key-value cache.", stats.total_blocks
    yield "kv_blocks_used", "Blocks in use.", stats.total_blocks - stats.free_blocks
    yield "adapter_rows", "Rank rows of the device's adapter pool.", stats.pool_rows
    yield "adapter_rows_used", "Rows in use.", stats.pool_rows - stats.free_pool_rows
    yield "engine_up", "1 while the engine's thread lives.", float(stats.alive)
