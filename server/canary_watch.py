"""The watchdog of canaries: takes a canary's requests away when it does worse than the version in
charge, by the same move that an operator would make.

It sees what this server answers. Several servers of a store watch each for themselves; the first
move wins, and the others see it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from polygraft.adapters.alias_records import AliasMove, AliasRecord, Target
from polygraft.adapters.errors import AliasConflict, PolygraftError
from polygraft.adapters.events import AdapterEvent, EventKind
from polygraft.adapters.registry import Registry

logger = logging.getLogger(__name__)

BY = "watchdog"
WINDOW = 500  # the latest answers of each version that count
MAX_SPLITS = 1000  # aliases with a canary that are remembered


class CanaryConfig(BaseModel):
    """When a canary is withdrawn. Rates and times are of the latest answers of this server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    watch: bool = Field(False, description="Withdraw canaries that do worse.")
    min_requests: int = Field(
        50, gt=0, description="Answers of each of the two versions before they are compared."
    )
    max_error_excess: float = Field(
        0.05, ge=0, le=1, description="Failed share of the canary's answers above the other's."
    )
    max_latency_ratio: float = Field(
        2.0, gt=1, description="Mean seconds of the canary's answers, in those of the other's."
    )


@dataclass(slots=True)
class Outcomes:
    """The latest answers of one version: seconds, or None for one that failed."""

    latest: deque[float | None] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def error_rate(self) -> float:
        """Share of answers that failed by a fault of the server or the version."""
        return sum(seconds is None for seconds in self.latest) / len(self.latest)

    @property
    def mean_seconds(self) -> float | None:
        """Of those that did not fail; None if there is none."""
        good = [seconds for seconds in self.latest if seconds is not None]
        return sum(good) / len(good) if good else None


class CanaryWatch:
    """Thread-safe. `executor` runs the move; `tell` is told of a withdrawal."""

    def __init__(
        self,
        registry: Registry,
        config: CanaryConfig,
        executor: Executor,
        tell: Callable[[AdapterEvent], None],
        count: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._config = config
        self._executor = executor
        self._tell = tell
        self._count = count
        self._lock = threading.Lock()
        # By alias: the generation and the outcomes of its two versions.
        self._splits: OrderedDict[tuple[str, str], tuple[int, dict[str, Outcomes]]] = OrderedDict()

    def note(self, alias: AliasRecord, digest: str, seconds: float | None) -> None:
        """A version answered a request that the alias sent it; `seconds` None: it failed."""
        if not self._config.watch or alias.canary is None:
            return
        with self._lock:
            if alias.generation < self._generation_of(alias):
                return  # it began before a move that others have been sent by since
            outcomes = self._outcomes_of(alias)
            outcomes[digest].latest.append(seconds)
            why = self._verdict(alias, outcomes)
            if why is None:
                return
            del self._splits[alias.adapter_name, alias.alias]
        self._executor.submit(self._withdraw, alias, alias.canary, why)

    def _generation_of(self, alias: AliasRecord) -> int:
        return self._splits.get((alias.adapter_name, alias.alias), (0, {}))[0]

    def _outcomes_of(self, alias: AliasRecord) -> dict[str, Outcomes]:
        key = (alias.adapter_name, alias.alias)
        generation, outcomes = self._splits.get(key, (0, {}))
        if generation != alias.generation:
            # Why kept over a change of weights: the versions are the same.
            old = {t.digest: outcomes[t.digest] for t in alias.targets if t.digest in outcomes}
            outcomes = {t.digest: old.get(t.digest) or Outcomes() for t in alias.targets}
        self._splits[key] = (alias.generation, outcomes)
        self._splits.move_to_end(key)
        if len(self._splits) > MAX_SPLITS:
            self._splits.popitem(last=False)
        return outcomes

    def _verdict(self, alias: AliasRecord, outcomes: dict[str, Outcomes]) -> str | None:
        """Why the canary must go; None while it may stay."""
        assert alias.canary is not None
        canary, other = outcomes[alias.canary.digest], outcomes[alias.digest]
        if min(len(canary.latest), len(other.latest)) < self._config.min_requests:
            return None
        excess = canary.error_rate - other.error_rate
        if excess > self._config.max_error_excess:
            return (
                f"{canary.error_rate:.1%} of {len(canary.latest)} answers failed, "
                f"{other.error_rate:.1%} of version {alias.number}'s"
            )
        mine, theirs = canary.mean_seconds, other.mean_seconds
        if mine is not None and theirs and mine > self._config.max_latency_ratio * theirs:
            return f"answers take {mine:.3f} s, those of version {alias.number} {theirs:.3f} s"
        return None

    def _withdraw(self, alias: AliasRecord, canary: Target, why: str) -> None:
        where, started = f"{alias.adapter_name}@{alias.alias}", time.monotonic()
        move = AliasMove(
            targets=(Target(alias.digest, alias.number),),
            expected_generation=alias.generation,
            reason=f"canary {canary.number} withdrawn: {why}",
            by=BY,
        )
        try:
            record = self._registry.write_alias(alias.adapter_name, alias.alias, move)
        except AliasConflict:
            logger.info("%s: the canary was moved before it was withdrawn", where)
            self._count("moved_before")
            return
        except PolygraftError as error:
            logger.error("%s: the canary could not be withdrawn: %s", where, error)
            self._count("failed")
            return
        self._count("withdrawn")
        logger.warning(
            "%s: canary %s withdrawn in %.3f s: %s",
            where,
            canary.number,
            time.monotonic() - started,
            why,
        )
        self._tell(
            AdapterEvent(
                EventKind.CANARY_WITHDRAWN,
                alias.adapter_name,
                canary.number,
                canary.digest,
                record,
                detail=why,
            )
        )
