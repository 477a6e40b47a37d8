"""From measurements to rows, JSON lines and a table. Knows no system."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from benchmarks.figures import markdown_section
from benchmarks.presets import Setting
from benchmarks.workload import RequestTrace, Workload


@dataclass(frozen=True, slots=True)
class Measurement:
    """One workload, run once by one system."""

    seconds: float
    cpu_seconds: float  # user + system, of all processes of the system
    rss_bytes: int  # at the end of the run
    traces: list[RequestTrace]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """From what a worker sends."""
        traces = [RequestTrace(**trace) for trace in data.pop("traces")]
        return cls(traces=traces, **data)

    @property
    def num_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(len(trace.token_ids) for trace in self.traces)


@dataclass(frozen=True, slots=True)
class Row:
    """One system in one setting, over all rounds. Times in milliseconds."""

    system: str
    model: str
    dtype: str
    adapters: int
    concurrency: int
    tokens_per_s: float  # median over the rounds
    cpu_ms_per_token: float  # median over the rounds
    ttft_ms_p50: float  # percentiles over the requests of all rounds
    ttft_ms_p99: float
    itl_ms_p50: float
    itl_ms_p99: float
    rss_mib: float  # highest over the rounds
    tokens_per_s_min: float
    tokens_per_s_max: float
    rounds: int
    requests: int  # per round
    same_output: float  # share of requests with the very tokens of the first system's first round

    @classmethod
    def summarize(
        cls,
        system: str,
        model: str,
        dtype: str,
        setting: Setting,
        workload: Workload,
        rounds: Sequence[Measurement],
        reference: Measurement,
    ) -> Self:
        """Check that all work was done, and reduce the rounds to one row."""
        for measurement in rounds:
            if measurement.num_tokens != workload.num_output_tokens:
                raise ValueError(
                    f"{system} produced {measurement.num_tokens} tokens instead of "
                    f"{workload.num_output_tokens}: its rate cannot be compared"
                )
        traces = [trace for measurement in rounds for trace in measurement.traces]
        first_token = [1e3 * trace.time_to_first_token for trace in traces]
        gaps = [1e3 * gap for trace in traces for gap in trace.inter_token_latencies]
        rates = [measurement.num_tokens / measurement.seconds for measurement in rounds]
        return cls(
            system=system,
            model=model,
            dtype=dtype,
            adapters=setting.num_adapters,
            concurrency=setting.concurrency,
            tokens_per_s=median(rates),
            cpu_ms_per_token=median(1e3 * m.cpu_seconds / m.num_tokens for m in rounds),
            ttft_ms_p50=percentile(first_token, 50),
            ttft_ms_p99=percentile(first_token, 99),
            itl_ms_p50=percentile(gaps, 50),
            itl_ms_p99=percentile(gaps, 99),
            rss_mib=max(measurement.rss_bytes for measurement in rounds) / 2**20,
            tokens_per_s_min=min(rates),
            tokens_per_s_max=max(rates),
            rounds=len(rounds),
            requests=setting.num_requests,
            same_output=_share_of_same_output(rounds, reference),
        )

    def to_json_line(self) -> str:

        fields = asdict(self).items()
        rounded = {key: round(v, 3) if isinstance(v, float) else v for key, v in fields}
        return json.dumps(rounded)


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear interpolation between the nearest ranks."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _share_of_same_output(rounds: Sequence[Measurement], reference: Measurement) -> float:
    same = [
        trace.token_ids == expected.token_ids
        for measurement in rounds
        for trace, expected in zip(measurement.traces, reference.traces, strict=True)
    ]
    return sum(same) / len(same)


COLUMNS = {
    "system": "system",
    "adapters": "adapters",
    "concurrency": "concur-\nrency",
    "tokens_per_s": "tokens/s",
    "cpu_ms_per_token": "CPU ms\n/token",
    "ttft_ms_p50": "TTFT ms\np50",
    "ttft_ms_p99": "TTFT ms\np99",
    "itl_ms_p50": "ITL ms\np50",
    "itl_ms_p99": "ITL ms\np99",
    "rss_mib": "RSS\nMiB",
    "same_output": "same\noutput",
}


def print_table(rows: Sequence[Row], console: Console, *, threads: int) -> None:
    """The rows for people, with the machine they were measured on."""
    title = f"{rows[0].model}, {rows[0].dtype}, {threads} threads, {machine()}"
    table = Table(title=title, title_justify="left")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="left" if heading == "system" else "right")
    previous = rows[0]
    for row in rows:
        if (row.adapters, row.concurrency) != (previous.adapters, previous.concurrency):
            table.add_section()
        table.add_row(*(_cell(key, getattr(row, key)) for key in COLUMNS))
        previous = row
    console.print(table)


def print_lora_tax(rows: Sequence[Row], console: Console) -> None:
    """What adapters cost each system, where it was also measured on the base alone."""
    for (system, adapters, concurrency), tax in lora_tax(rows).items():
        console.print(
            f"{system}: {adapters} adapters cost {tax:.0%} of the base's tokens/s at "
            f"concurrency {concurrency}",
            highlight=False,
        )


def markdown_rows(rows: Sequence[Row]) -> str:
    """A section with the rows and with what adapters cost."""
    headings = [heading.replace("-\n", "").replace("\n", " ") for heading in COLUMNS.values()]
    cells = [[_cell(key, getattr(row, key)) for key in COLUMNS] for row in rows]
    taxes = [
        f"- {system}, {concurrency} clients: {tax:.0%}"
        for (system, _, concurrency), tax in lora_tax(rows).items()
    ]
    section = markdown_section(
        "Serving",
        f"{rows[0].model}, {rows[0].dtype}, {rows[0].rounds} interleaved rounds of "
        f"{min(row.requests for row in rows)} to {max(row.requests for row in rows)} requests.",
        headings,
        cells,
    )
    return "\n".join([section, "What adapters cost of the base's tokens/s:", "", *taxes]) + "\n"


def lora_tax(rows: Sequence[Row]) -> dict[tuple[str, int, int], float]:
    """By system, adapters and concurrency: the share of the base-only rate that adapters cost."""
    base = {(row.system, row.concurrency): row.tokens_per_s for row in rows if row.adapters == 0}
    return {
        (row.system, row.adapters, row.concurrency): 1 - row.tokens_per_s / rate
        for row in rows
        if row.adapters and (rate := base.get((row.system, row.concurrency)))
    }


def _cell(key: str, value: Any) -> str:
    if key == "same_output":
        return f"{value:.0%}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def machine() -> str:
    """Number and name of the logical processors, as the system tells them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"
