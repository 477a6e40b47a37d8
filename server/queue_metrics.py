"""What Prometheus is told of the queue: who waits, and what became of those who waited."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from polygraft.server.engine.messages import PRIORITIES, QueueStats

_CLASS_NAMES = dict(zip(PRIORITIES, ("low", "normal", "high"), strict=True))


def queue_metrics(stats: QueueStats) -> Iterator[Metric]:
    """Series of one scrape."""
    line = GaugeMetricFamily(
        "polygraft_sequences_in_line",
        "Sequences that could be admitted, by priority class.",
        labels=["priority"],
    )
    for priority, name in _CLASS_NAMES.items():
        line.add_metric([name], stats.in_line.get(priority, 0))
    yield line
    yield CounterMetricFamily(
        "polygraft_displacements",
        "Sequences that gave their place to one that was served less.",
        stats.displaced,
    )
    yield CounterMetricFamily(
        "polygraft_cold_waits",
        "Times that a sequence had to wait for an adapter.",
        stats.cold_waits,
    )
    missed = CounterMetricFamily(
        "polygraft_deadlines_missed",
        "Requests refused at submit or dropped while waiting, for their deadline.",
        labels=["when"],
    )
    missed.add_metric(["submit"], stats.deadlines_refused)
    missed.add_metric(["waiting"], stats.deadlines_passed)
    yield missed
