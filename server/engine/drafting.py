"""Which decodes of a step carry guessed tokens, and how many. Pure bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass

from polygraft.server.engine.messages import SpeculationStats
from polygraft.server.engine.placement import Placement
from polygraft.server.engine.sequence import Sequence
from polygraft.server.engine.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """is_default: whether sequences that do not say so themselves are speculated on."""

    is_default: bool = False
    max_tokens: int = 7  # guessed for one sequence in one step
    max_rows: int = 8  # of a step with guesses; in fuller ones a row costs too much


class Drafting:
    """Adds drafts to planned steps and counts them. Engine thread only."""

    def __init__(self, limits: DraftLimits, placement: Placement) -> None:
        self._limits = limits
        self._placement = placement
        self._num_drafted = 0
        self._num_accepted = 0

    def plan(self, step: StepPlan) -> None:
        """Drafts for the decodes of a step that is complete otherwise: in rows that nobody wants
        and in blocks that are free."""
        for chunk in step.chunks:
            sequence = chunk.sequence
            spare = min(step.budget, self._limits.max_rows - step.num_tokens)
            if spare > 0 and self._is_wanted(sequence):
                draft = _guess(sequence, min(spare, self._most(sequence)))
                end = sequence.num_positions + len(draft)
                if draft and self._placement.grow(sequence, end):
                    step.add_draft(sequence, draft)
                    self._num_drafted += len(draft)

    def record(self, num_tokens: int) -> None:
        """A step gave a sequence so many tokens: all but one were guessed."""
        self._num_accepted += max(0, num_tokens - 1)

    def stats(self) -> SpeculationStats:
        """Counts so far. May be called from any thread."""
        return SpeculationStats(drafted=self._num_drafted, accepted=self._num_accepted)

    def _is_wanted(self, sequence: Sequence) -> bool:
        wanted = sequence.request.speculation
        is_on = self._limits.is_default if wanted is None else wanted
        return is_on and sequence.is_decode and sequence.num_output > 0

    def _most(self, sequence: Sequence) -> int:
        """The token that the step gives anyway is not guessed."""
        left = sequence.request.stopping.max_output_tokens - sequence.num_output
        return min(self._limits.max_tokens, left - 1)


def _guess(sequence: Sequence, count: int) -> tuple[int, ...]:
    """What a constraint leaves no choice about, else what is repeated, as far as it is possible."""
    chooser = sequence.chooser
    draft = sequence.speculator.draft(count, chooser.forced())
    return draft[: chooser.num_possible(draft)]
