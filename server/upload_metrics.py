"""What Prometheus is told of uploads: how they ended, and what is staged now."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polygraft.adapters.uploads import Uploads


class UploadMetrics(Collector):
    """Read when scraped."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        stats = self._uploads.stats()
        ended = CounterMetricFamily(
            "polygraft_uploads", "Uploads that ended, by how.", labels=["outcome"]
        )
        for outcome, count in stats.ended.items():
            ended.add_metric([outcome], count)
        yield ended
        for name, text, value in (
            ("uploads_running", "Uploads that a client is sending.", stats.running),
            ("uploads_unfinished", "Uploads that are kept, running or not.", stats.unfinished),
            ("upload_staged_bytes", "Bytes reserved for them.", stats.staged_bytes),
        ):
            yield GaugeMetricFamily(f"polygraft_{name}", text, value=value)
