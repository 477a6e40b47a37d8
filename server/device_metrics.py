"""What Prometheus is told of steps on a GPU: which way each took. Empty on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric

_TEXTS = {
    "steps": "Steps, by whether they were replayed from a captured graph or launched.",
    "linear": "Steps, by how their linear layers were computed.",
    "attention": "Steps, by how their attention was computed.",
    "sampling": "Tokens, by where they were chosen, and why there.",
}


def device_metrics(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    """Series of one scrape. counts: EngineStats.device."""
    for what, by_kind in counts.items():
        family = CounterMetricFamily(f"polygraft_device_{what}", _TEXTS[what], labels=["kind"])
        for kind, count in by_kind.items():
            family.add_metric([kind], count)
        yield family
