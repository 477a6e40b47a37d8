"""Who runs in the next step. Pure Python: no tensors, no threads, no clock of its own.

Decodes come first, so a long prompt never delays anybody's next token by more than the step that
computes a chunk of it. What is left of the token budget goes to prompts, running and new ones
alike, in fair order (`fairness.py`, `priorities.py`). A sequence that waits and was served less
than others may take the place of one that runs; when blocks run out, the sequence that was served
most gives its blocks back and is computed again later (preemption by recompute).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from polygraft.adapters.errors import DeadlineExpired
from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.drafting import Drafting, DraftLimits
from polygraft.server.engine.fairness import INPUT_COST, OUTPUT_COST, FairRules
from polygraft.server.engine.messages import FinishReason, QueueStats
from polygraft.server.engine.placement import Placement
from polygraft.server.engine.precedence import Precedence
from polygraft.server.engine.priorities import ClassOrder
from polygraft.server.engine.sequence import Sequence, SequenceState
from polygraft.server.engine.step_plan import RunningAdapters, StepPlan
from polygraft.server.engine.timers import Timers
from polygraft.server.engine.virtual_writers import VirtualWriters
from polygraft.server.engine.waiting_room import WaitingRoom

_LOOK_AHEAD = 16  # accounts whose first is looked at when adapters have no room in the step

_SPARE_TIMERS = 1024  # of sequences that ended before their time


class AdapterPort(Protocol):
    """What the scheduler asks about adapters. Answers must be cheap."""

    def is_ready(self, *digests: str) -> bool:
        """Whether the versions are all on the device; without `hold` they may leave it again."""
        ...

    def hold(self, *digests: str) -> bool:
        """Keep the versions on the device until they are dropped; all of them or, when False,
        none: one is not there, or others have waited longer for its place."""
        ...

    def failure(self, *digests: str) -> Exception | None:
        """Why one of the versions could not be loaded, if one could not."""
        ...


class AdapterReferences(AdapterPort, Protocol):
    """What the engine needs of `adapters.residency.Residency`."""

    def drop(self, *digests: str) -> None:
        """End what `hold` began."""
        ...

    def release(self, *digests: str) -> None:
        """Give back one reference to each version."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Caps of one step."""

    max_running: int
    max_batch_tokens: int
    max_chunk: int
    max_step_adapters: int = 256
    max_step_columns: int = 8192
    max_skip: float = 1.0  # seconds that one is passed over for want of room for its adapters
    drafts: DraftLimits = field(default_factory=DraftLimits)


class Scheduler:
    """Waiting and running sequences and the blocks they hold. Used by the engine thread only."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockPool,
        adapters: AdapterPort,
        *,
        prefix_cache: bool,
        window: int | None = None,
        fairness: FairRules | None = None,
        columns: Callable[[str], int] = lambda digest: 0,
    ) -> None:
        self.limits = limits
        self.placement = Placement(blocks, prefix_cache=prefix_cache, window=window)
        self.drafting = Drafting(limits.drafts, self.placement)
        self.waiting = WaitingRoom(fairness or FairRules())
        self.running: OrderedDict[str, Sequence] = OrderedDict()
        self.num_preemptions = 0  # for want of blocks
        self.num_displaced = 0  # for the sake of those who were served less
        self.num_deadlines_passed = 0  # while they waited
        self._adapters = adapters
        self._precedence = Precedence(self.waiting, max_running=limits.max_running)
        self._classes = ClassOrder(float(limits.max_chunk))
        self._timers = Timers()
        self._ending: dict[str, Sequence] = {}
        self._writers = VirtualWriters(self.placement, self.waiting)
        self._in_step = RunningAdapters(
            max_adapters=limits.max_step_adapters,
            max_columns=limits.max_step_columns,
            columns=columns,
        )

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._timers.add(sequence)
        num_live = len(self.waiting) + len(self.running)
        if len(self._timers) > _SPARE_TIMERS + 4 * num_live:
            self._timers.prune({sequence.id, *self.running, *(s.id for s in self.waiting)})
        sibling = self._find(sequence.request.after) if sequence.request.after else None
        if sibling is not None and not sibling.is_prompt_computed:
            self.waiting.wait_for_sibling(sequence, sibling.id)
        else:
            self._queue(sequence)

    def abort(self, request_id: str) -> None:
        """End a sequence in any state; an unknown id is ignored."""
        sequence = self._find(request_id)
        if sequence is not None:
            sequence.is_aborted = True
            self._ending[request_id] = sequence

    def adapter_changed(self, digest: str) -> None:
        """A version became ready, or could not be loaded."""
        for sequence in self.waiting.take_for_adapter(digest):
            self._queue(sequence)

    def sweep(self, now: float) -> list[Sequence]:
        """Take out what is cancelled, expired or cannot be served; each has its reason set."""
        for request_id in self._timers.due(now):
            sequence = self._find(request_id)
            if sequence is not None:
                self._ending[request_id] = sequence
        ended = []
        while self._ending:  # the end of one may bring the end of a sibling
            sequence = self._ending.pop(next(iter(self._ending)))
            if _has_ended(sequence, now):
                self.num_deadlines_passed += isinstance(sequence.error, DeadlineExpired)
                self.finish(sequence)
                ended.append(sequence)
        return ended

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if sequence.id in self.running:
            self._stop(sequence)
        elif sequence.id in self.waiting:
            self.waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED
        self._ending.pop(sequence.id, None)
        self._let_siblings_go(sequence)

    def plan(self, now: float) -> list[Chunk]:
        """The chunks of the next step; their blocks are allocated."""
        step = StepPlan(self.limits.max_batch_tokens)
        running = list(self.running.values())
        decodes = [sequence for sequence in running if sequence.is_decode]
        prompts = [sequence for sequence in running if not sequence.is_decode]
        wanting = {priority for priority, line in self.waiting.lines.items() if line.num_waiting}
        wanting.update(sequence.request.priority for sequence in prompts)
        order = self._classes.order(wanting)
        self._plan_decodes(step, decodes)
        self._plan_prompts(step, prompts, order, now)
        self.drafting.plan(step)
        return step.chunks

    def computed(self, sequence: Sequence, *, is_finite: bool) -> None:
        """A step computed a chunk of the sequence. `is_finite`: and logits, which were finite."""
        if is_finite:
            self.placement.index(sequence)
            self._let_in(self._writers.take_waiting(sequence, has_ended=False))
        self.placement.drop_unread(sequence)
        new = sequence.num_output - sequence.num_charged_output
        sequence.num_charged_output = sequence.num_output
        self._charge(sequence, new * OUTPUT_COST)
        self.drafting.record(new)
        if sequence.is_prompt_computed:
            self._let_siblings_go(sequence)

    def stats(self) -> QueueStats:
        """What only the scheduler knows. May be called from any thread."""
        lines = self.waiting.lines.items()
        return QueueStats(
            in_line={priority: line.num_waiting for priority, line in lines},
            displaced=self.num_displaced,
            cold_waits=self.waiting.num_cold_waits,
            deadlines_passed=self.num_deadlines_passed,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if blocks, states, queues and accounts disagree."""
        running = list(self.running.values())
        self.placement.blocks.check_integrity(Counter(b for s in running for b in s.held_blocks))
        self.waiting.check_integrity()
        self._in_step.check_integrity(running)
        assert all(s.state is SequenceState.WAITING and not s.blocks for s in self.waiting)
        assert all(s.state is SequenceState.RUNNING for s in running)
        classes = Counter(s.request.priority for s in running)
        for priority, line in self.waiting.lines.items():
            assert line.num_running == classes[priority]
        assert not any(s.id in self.waiting for s in running), "a sequence runs and waits"

    # Queues

    def _find(self, request_id: str) -> Sequence | None:
        return self.waiting.get(request_id) or self.running.get(request_id)

    def _queue(self, sequence: Sequence) -> None:
        """In line if its adapters are on the device, else apart until they are."""
        missing = None
        if not sequence.holds_adapters:
            missing = next((d for d in sequence.digests if not self._adapters.is_ready(d)), None)
        if missing is None:
            self.waiting.enter_line(sequence)
            return
        self.waiting.wait_for_adapter(sequence, missing)
        sequence.error = self._adapters.failure(*sequence.digests)
        if sequence.error is not None:
            self._ending[sequence.id] = sequence

    def _let_siblings_go(self, sequence: Sequence) -> None:
        self._let_in(self.waiting.take_for_sibling(sequence.id))

    def _let_in(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._queue(sequence)

    def _start(self, sequence: Sequence, now: float) -> None:
        self.waiting.remove(sequence)
        self.running[sequence.id] = sequence
        self.waiting.line_of(sequence).start(sequence)
        self._in_step.start(sequence)
        self._writers.start(sequence)
        sequence.state = SequenceState.RUNNING
        sequence.passed_over_at = None
        if sequence.first_scheduled_at is None:
            sequence.first_scheduled_at = now

    def _stop(self, sequence: Sequence) -> None:
        self.placement.release(sequence)
        del self.running[sequence.id]
        self.waiting.line_of(sequence).stop(sequence)
        self._in_step.stop(sequence)
        self._let_in(self._writers.take_waiting(sequence, has_ended=True))

    def _preempt(self, sequence: Sequence, step: StepPlan) -> None:
        step.drop(sequence)
        self._stop(sequence)
        sequence.state = SequenceState.WAITING
        self._queue(sequence)

    # One step

    def _plan_decodes(self, step: StepPlan, decodes: list[Sequence]) -> None:
        """A token for each."""
        for sequence in decodes:
            # Making room for an earlier one may have pushed this one out of `running`.
            if sequence.id in self.running and self._grow(sequence, 1, step):
                step.add(sequence, 1)

    def _plan_prompts(
        self, step: StepPlan, prompts: list[Sequence], order: list[int], now: float
    ) -> None:
        """Chunks of running prompts and of new ones, in fair order; of equals, running first."""
        rank = self._precedence.rank
        pending = deque(sorted(prompts, key=lambda sequence: rank(sequence, order)))
        may_admit = True
        while step.budget:
            # Whoever was pushed out in this step must not take the room straight back.
            may_admit = may_admit and not step.has_pushed_out
            new = self._next_in_line(order, now) if may_admit else None
            if new is not None and (not pending or rank(new, order) < rank(pending[0], order)):
                may_admit = self._admit(new, step, now)
            elif pending:
                sequence = pending.popleft()
                if sequence.id in self.running:
                    self._compute_chunk(sequence, step)
            else:
                break

    def _next_in_line(self, order: list[int], now: float) -> Sequence | None:
        """Who is to be admitted next; None if nobody can be.

        Those whose adapters the step has no room for are passed over, which groups requests of
        the adapters that run; but who was passed over for `max_skip` seconds gets the next room.
        """
        for priority in order:
            for sequence in self.waiting.lines[priority].heads(_LOOK_AHEAD):
                if self._in_step.has_room_for(sequence):
                    return sequence
                if sequence.passed_over_at is None:
                    sequence.passed_over_at = now
                elif now - sequence.passed_over_at >= self.limits.max_skip:
                    return None
        return None

    def _admit(self, sequence: Sequence, step: StepPlan, now: float) -> bool:
        """Let a sequence run if there is room. False: there is none, nor for anybody behind it,
        since small requests must not starve a large one."""
        if not sequence.holds_adapters and not self._adapters.is_ready(*sequence.digests):
            self.waiting.remove(sequence)
            self._queue(sequence)  # apart from the line, until they are back
            return True
        if self._writers.make_wait(sequence):
            return True
        if not self._find_room(sequence, step):
            return False
        if not self._hold_adapters(sequence):  # they left at this very moment
            self.placement.release(sequence)
            return False
        self._start(sequence, now)
        self._compute_chunk(sequence, step)
        return True

    def _find_room(self, sequence: Sequence, step: StepPlan) -> bool:
        """Blocks and a place, if need be those of sequences that were served more."""
        while True:
            is_alone = not self.running
            has_place = len(self.running) < self.limits.max_running
            if has_place and self.placement.admit(sequence, is_alone=is_alone):
                return True
            victim = self._precedence.displaced_by(sequence, self.running.values())
            if victim is None:
                return False
            self.num_displaced += 1
            self._preempt(victim, step)

    def _hold_adapters(self, sequence: Sequence) -> bool:
        """Keep its adapters on the device until it ends; False if one is not there."""
        if not sequence.holds_adapters:
            digests = sequence.digests
            sequence.holds_adapters = not digests or self._adapters.hold(*digests)
        return sequence.holds_adapters

    def _compute_chunk(self, sequence: Sequence, step: StepPlan) -> None:
        """The next chunk of a prompt, in this step."""
        most = sequence.request.max_chunk or self.limits.max_chunk
        size = min(sequence.num_remaining, step.budget, self.limits.max_chunk, most)
        if self._grow(sequence, size, step):
            step.add(sequence, size)
            self._charge_prompt(sequence, sequence.num_computed + size)

    def _grow(self, sequence: Sequence, size: int, step: StepPlan) -> bool:
        """Blocks for `size` more positions, pushing out whoever was served most; False if that
        is the sequence itself."""
        while not self.placement.grow(sequence, sequence.num_computed + size):
            victim = self._precedence.most_served(self.running.values())
            self.num_preemptions += 1
            step.has_pushed_out = True
            self._preempt(victim, step)
            if victim is sequence:
                return False
        return True

    # Accounts

    def _charge_prompt(self, sequence: Sequence, end: int) -> None:
        """Positions below `end` are or will be computed; nothing is charged twice."""
        start = max(sequence.num_charged_prompt, sequence.num_computed)
        end = min(end, sequence.num_virtual + sequence.num_prompt)
        if end > start:
            sequence.num_charged_prompt = end
            self._charge(sequence, (end - start) * INPUT_COST)

    def _charge(self, sequence: Sequence, cost: float) -> None:
        self.waiting.line_of(sequence).charge(sequence, cost)
        self._classes.charge(sequence.request.priority, cost)


def _has_ended(sequence: Sequence, now: float) -> bool:
    """Whether a sequence is to end outside a step; sets the reason."""
    deadline = sequence.request.deadline
    if sequence.is_aborted:
        sequence.finish_reason = FinishReason.CANCELLED
    elif sequence.expires_at is not None and now >= sequence.expires_at:
        sequence.finish_reason = FinishReason.TIME_LIMIT
    elif deadline is not None and now >= deadline and sequence.state is SequenceState.WAITING:
        sequence.error = DeadlineExpired("the deadline passed while the request was waiting.")
    return sequence.finish_reason is not None or sequence.error is not None
