"""Reads the few series of the server's metrics page that tell what happened."""

from __future__ import annotations

from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(url: str) -> Series:
    """Every sample by name and labels."""
    with urlopen(url, timeout=10) as page:
        text = page.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """Sum of the samples of a name whose labels include those given."""
    wanted = set(labels.items())
    return sum(
        value
        for (found, having), value in series.items()
        if found == name and wanted <= set(having)
    )


def mean(series: Series, histogram: str) -> float:
    """Mean of a histogram's observations."""
    count = total(series, f"{histogram}_count")
    return total(series, f"{histogram}_sum") / count if count else 0.0
