"""The record of a check: JSON for programs, Markdown for people, both written as phases end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.variants import VARIANTS
from benchmarks.gpu.verdict import Goal, goals_of, layer_totals, verdict_of

SCHEMA = "polygraft.gpu-check/1"
Status = Literal["ok", "failed", "out of time"]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """How a phase ended, and what it wrote until then."""

    name: str
    status: Status
    seconds: float
    budget: int
    records: list[dict[str, Any]]
    note: str = ""  # the end of its errors, where it failed

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Check:
    """One check under way or done."""

    machine: Machine
    rehearsal: bool
    peers: str
    phases: list[PhaseResult] = field(default_factory=list)

    @property
    def goals(self) -> list[Goal]:
        """Of what was measured so far."""
        return goals_of({phase.name: phase.records for phase in self.phases})

    @property
    def verdict(self) -> str:
        """A rehearsal never passes or fails. Nor does a check pass one of whose phases failed."""
        if self.rehearsal:
            return "rehearsal: nothing was measured"
        verdict = verdict_of(self.goals)
        has_failed = any(phase.status == "failed" for phase in self.phases)
        return "failed" if has_failed else verdict

    def to_json(self) -> dict[str, Any]:
        """The whole record."""
        return {
            "schema": SCHEMA,
            "rehearsal": self.rehearsal,
            "verdict": self.verdict,
            "machine": self.machine.to_json(),
            "peers": self.peers,
            "goals": [goal.to_json() for goal in self.goals],
            "phases": [phase.to_json() for phase in self.phases],
        }

    def write(self, folder: Path) -> None:
        """`record.json` and `record.md`."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        (folder / "record.json").write_text(text, encoding="utf-8")
        (folder / "record.md").write_text(self.to_markdown(), encoding="utf-8")

    def to_markdown(self) -> str:
        """Verdict, table of the kernels, steps, serving."""
        sections = [
            "# GPU check",
            self.machine.sentence(),
            f"Verdict: **{self.verdict}**. Peers: {self.peers}",
            _table(
                ("goal", "limit", "measured", ""),
                [
                    (
                        goal.name + (f" ({goal.note})" if goal.note else ""),
                        ("at least " if goal.is_least else "at most ") + f"{goal.limit:g}",
                        "" if goal.measured is None else f"{goal.measured:.4g}",
                        goal.outcome,
                    )
                    for goal in self.goals
                ],
            ),
            _table(
                ("phase", "ended", "seconds of", ""),
                [
                    (p.name, p.status, f"{p.seconds:.0f} of {p.budget}", _one_line(p.note))
                    for p in self.phases
                ],
            ),
            *_kernel_sections(self._records("kernels")),
            *_decode_section(self._records("decode")),
            *_serving_section(self._records("serving")),
        ]
        return "\n\n".join(sections) + "\n"

    def _records(self, name: str) -> list[dict[str, Any]]:
        return [record for phase in self.phases if phase.name == name for record in phase.records]


def _kernel_sections(records: Sequence[dict[str, Any]]) -> list[str]:
    cases = [record for record in records if record["kind"] == "case"]
    if not cases:
        return []
    names = [name for name in VARIANTS if any(name in case["us"] for case in cases)]
    totals = layer_totals(records)
    layer_rows = [
        (
            load,
            *(
                _with_overhead(
                    total.medians.get(name), total.overhead(name), is_base=name == names[0]
                )
                for name in names
            ),
        )
        for load, total in totals.items()
    ]
    site_rows = [
        (
            case["load"],
            case["site"],
            *(
                "{:.1f} ({:.1f}-{:.1f})".format(*case["us"][name]) if name in case["us"] else ""
                for name in names
            ),
        )
        for case in cases
    ]
    absent = {f"{name}: {_one_line(why)}" for case in cases for name, why in case["absent"].items()}
    eager = [
        f"{name}, {case['load']}, {case['site']}: {us:.0f} us"
        for case in cases
        for name, us in case["eager_us"].items()
    ]
    return [
        "## The linear layers of one layer\n\nMicroseconds, the sum of the sites' medians, and "
        "what is added to the base by cuBLAS.",
        _table(("load", *names), layer_rows),
        "## By site\n\nMicroseconds of a launch: median (p10-p90).",
        _table(("load", "site", *names), site_rows),
        *(["Left out: " + "; ".join(sorted(absent)) + "."] if absent else []),
        *(["Eager, launches included: " + "; ".join(eager) + "."] if eager else []),
    ]


def _with_overhead(us: float | None, overhead: float | None, *, is_base: bool) -> str:
    if us is None:
        return ""
    return f"{us:.1f}" if is_base or overhead is None else f"{us:.1f} ({overhead:+.1%})"


def _decode_section(records: Sequence[dict[str, Any]]) -> list[str]:
    steps = [record for record in records if record["kind"] == "step"]
    if not steps:
        return []
    rows = [
        (
            step["load"],
            *(f"{step['us'][name][0] / 1e3:.3f}" for name in ("cublas", "ours base", "ours")),
            f"{step['overhead']:+.1%}",
            f"{step['tokens_per_s']['ours']:.0f}",
        )
        for step in steps
    ]
    layers = steps[0]["layers"]
    heading = (
        f"## The linear layers of a decode step\n\n{layers} layers in one graph; milliseconds."
    )
    columns = ("load", "cublas", "ours base", "ours", "added", "tokens/s")
    return [heading, _table(columns, rows)]


def _serving_section(records: Sequence[dict[str, Any]]) -> list[str]:
    found = next((record for record in records if record["kind"] == "tokens_per_s"), None)
    if found is None:
        return []
    rows = [
        (kind, f"{rate:.0f}", f"{found['step_ms'][kind]:.2f}", f"{found['begin_s'][kind]:.2f}")
        for kind, rate in found["rates"].items()
    ]
    rows.append(("floor: bytes of a base-only step", f"{found['floor']:.0f}", "", ""))
    heading = (
        f"## The engine\n\n{found['requests']} requests at once, {found['adapters']} adapters."
    )
    return [heading, _table(("", "tokens/s", "ms a step", "s until all answer"), rows)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[-300:]
