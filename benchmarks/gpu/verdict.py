"""What the check was to reach (issue 5, "Must reach" 3) against what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.gpu.variants import BASE, VARIANTS

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]  # by phase

OVERHEADS = (  # load, most that adapters may add to the base product by cuBLAS
    ("M 1, D 1, r 16", 0.05),
    ("M 32, D 8, r 16", 0.10),
    ("M 256, D 8, r 16", 0.10),
    ("M 2048, D 8, r 16", 0.05),
)
AT_THE_FLOOR = ("M 128, D 64, r 16", 1.25)  # load, most times what its bytes take
FASTER = 0.97  # of a peer's time at most: less is noise
WANTED_CASES, WANTED_REPLAYS = 200, 100
KEPT, OF_FLOOR = 0.85, 0.75


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and its limit; `measured` is None where nothing was measured."""

    name: str
    limit: float
    measured: float | None
    is_least: bool = False  # the limit is the least, not the most
    note: str = ""

    @property
    def outcome(self) -> Literal["met", "missed", "not measured"]:
        """NaN is missed."""
        if self.measured is None:
            return "not measured"
        if self.is_least:
            return "met" if self.measured >= self.limit else "missed"
        return "met" if self.measured <= self.limit else "missed"

    def to_json(self) -> dict[str, Any]:
        """With its outcome."""
        return {**asdict(self), "outcome": self.outcome}


def goals_of(records: Records) -> list[Goal]:
    """Every goal, measured or not, in the order of the issue."""
    totals = layer_totals(records.get("kernels", ()))
    return [
        *_correctness(records.get("correctness", ())),
        *(_overhead(totals, load, limit) for load, limit in OVERHEADS),
        _floor(totals, records.get("calibrate", ())),
        *(_peer(totals, name) for name, variant in VARIANTS.items() if variant.is_peer),
        *_serving(records.get("serving", ())),
    ]


def verdict_of(goals: Sequence[Goal]) -> Literal["passed", "failed", "incomplete"]:
    """Passed only if every goal was measured and met."""
    outcomes = {goal.outcome for goal in goals}
    if "missed" in outcomes:
        return "failed"
    return "incomplete" if "not measured" in outcomes else "passed"


@dataclass(frozen=True, slots=True)
class LayerTotal:
    """One load, summed over the sites of a layer. Microseconds by variant; only variants that were
    measured at every site."""

    load: str
    medians: Mapping[str, float]
    p10: Mapping[str, float]
    p90: Mapping[str, float]
    bytes: int
    flops: int
    sites: int

    def overhead(self, variant: str) -> float | None:
        """What it takes more than the base by cuBLAS, as a share of that."""
        if variant not in self.medians or BASE not in self.medians:
            return None
        return self.medians[variant] / self.medians[BASE] - 1


def layer_totals(records: Sequence[Record]) -> dict[str, LayerTotal]:
    """By load, in the order of the records."""
    by_load: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "case":
            by_load[record["load"]].append(record)
    most = max(map(len, by_load.values()), default=0)
    return {load: _total(load, cases) for load, cases in by_load.items() if len(cases) == most}


def _total(load: str, cases: Sequence[Record]) -> LayerTotal:
    everywhere = set.intersection(*(set(case["us"]) for case in cases))
    medians, p10, p90 = (
        {name: sum(c["us"][name][which] for c in cases) for name in VARIANTS if name in everywhere}
        for which in range(3)
    )
    return LayerTotal(
        load,
        medians=medians,
        p10=p10,
        p90=p90,
        bytes=sum(case["bytes"] for case in cases),
        flops=sum(case["flops"] for case in cases),
        sites=len(cases),
    )


def _correctness(records: Sequence[Record]) -> list[Goal]:
    fuzz = [r for r in records if r["kind"] == "fuzz"]
    forward = [r for r in fuzz if r["what"] == "forward"]
    replays = [r for r in records if r["kind"] == "replays"]
    refilled = [r for r in records if r["kind"] == "refilled"]
    isolated = [r for r in records if r["kind"] == "isolation"]
    bound = max((r["bound"] for r in fuzz), default=1e-2)
    return [
        Goal(
            "fuzz cases against float64",
            WANTED_CASES,
            sum(r["cases"] for r in forward) if forward else None,
            is_least=True,
        ),
        Goal("worst error of the fuzz", bound, _worst(fuzz, "worst"), note="forward and gradient"),
        Goal(
            "bit-equal replays of a graph",
            WANTED_REPLAYS,
            min((r["equal"] for r in replays), default=None),
            is_least=True,
            note="the fewest at any site and bucket; a replay is compared with the eager launch",
        ),
        Goal("share of graphs that read a new plan", 1, _share(refilled), is_least=True),
        Goal("share of rows untouched by neighbours", 1, _share(isolated), is_least=True),
    ]


def _worst(records: Sequence[Record], key: str) -> float | None:
    return max((r[key] for r in records), default=None)


def _share(records: Sequence[Record]) -> float | None:
    return sum(r["equal"] for r in records) / len(records) if records else None


def _overhead(totals: Mapping[str, LayerTotal], load: str, limit: float) -> Goal:
    measured = totals[load].overhead("ours") if load in totals else None
    return Goal(f"overhead over cuBLAS, {load}", limit, measured)


def _floor(totals: Mapping[str, LayerTotal], records: Sequence[Record]) -> Goal:
    load, limit = AT_THE_FLOOR
    rates = [r["bytes_per_s"] for r in records if r["kind"] == "ceilings"]
    measured = None
    if load in totals and rates and "ours" in totals[load].medians:
        floor = 1e6 * totals[load].bytes / rates[0]
        measured = totals[load].medians["ours"] / floor
    return Goal(f"times the byte floor, {load}", limit, measured)


def _peer(totals: Mapping[str, LayerTotal], peer: str) -> Goal:
    """The worst load. Faster is 3 % and more, with p10 to p90 apart."""
    ratios = {}
    for load, total in totals.items():
        if peer in total.medians and "ours" in total.medians:
            ratio = total.medians["ours"] / total.medians[peer]
            is_apart = total.p90["ours"] < total.p10[peer]
            ratios[load] = ratio if is_apart else max(ratio, 1.0)
    worst = max(ratios, key=lambda load: ratios[load], default=None)
    return Goal(
        f"time against {peer}, the worst load",
        FASTER,
        None if worst is None else ratios[worst],
        note="" if worst is None else worst,
    )


def _serving(records: Sequence[Record]) -> list[Goal]:
    found = next((r for r in records if r["kind"] == "tokens_per_s"), None)
    return [
        Goal(
            "tokens/s of 32 adapters over base only",
            KEPT,
            None if found is None else found["kept"],
            is_least=True,
        ),
        Goal(
            "base-only tokens/s over the bandwidth floor",
            OF_FLOOR,
            None if found is None else found["of_floor"],
            is_least=True,
        ),
    ]
