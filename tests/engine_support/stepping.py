"""The real scheduler over a real block pool, with a model that does nothing: fast and exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from polygraft.server.engine.batch import Chunk
from polygraft.server.engine.block_pool import BlockPool
from polygraft.server.engine.fairness import FairRules
from polygraft.server.engine.messages import AdapterShare, EngineRequest, FairShare, Stopping
from polygraft.server.engine.scheduler import Scheduler, SchedulerLimits
from polygraft.server.engine.sequence import Sequence

BLOCK = 4


class FakeAdapters:
    """Which versions are on the device, as a test says."""

    def __init__(self) -> None:
        self.ready: set[str] = {"warm"}
        self.failures: dict[str, Exception] = {}
        self.holders: Counter[str] = Counter()

    def is_ready(self, *digests: str) -> bool:
        """See AdapterPort."""
        return self.ready.issuperset(digests)

    def hold(self, *digests: str) -> bool:
        """See AdapterPort."""
        if self.is_ready(*digests):
            self.holders.update(digests)
        return self.is_ready(*digests)

    def failure(self, *digests: str) -> Exception | None:
        """See AdapterPort."""
        return next((self.failures[d] for d in digests if d in self.failures), None)


@dataclass
class Track:
    """What a test wants to know of one sequence, in steps."""

    submitted: int
    sequence: Sequence
    is_poisoned: bool = False
    first_token: int | None = None
    ended: int | None = None
    num_counted: int = 0  # prompt positions computed for the first time

    @property
    def wait(self) -> int:
        """Steps to the first token."""
        assert self.first_token is not None
        return self.first_token - self.submitted

    @property
    def latency(self) -> int:
        """Steps to the last token."""
        assert self.ended is not None
        return self.ended - self.submitted


class FakeMemory:
    """What lies in every cell: which positions of what, so that reading anything else is seen."""

    def __init__(self) -> None:
        self.content: dict[int, object] = {}

    def compute(
        self, sequence: Sequence, end: int, window: int | None, *, is_poisoned: bool
    ) -> None:
        """Write the positions up to `end`, and check all that they read."""
        expected = _contents(sequence, end)
        cells = sequence.cells(0, end).tolist()
        for position in range(sequence.num_computed, end):
            self.content[cells[position]] = "poison" if is_poisoned else expected[position]
        first = 0 if window is None else max(0, sequence.num_computed - window + 1)
        if not is_poisoned:
            read = [self.content[cell] for cell in cells[first:end]]
            assert read == expected[first:end], f"{sequence.id} reads what is not its own"


def _contents(sequence: Sequence, end: int) -> list[object]:
    """Keys and values depend on the adapters, the virtual tokens and all tokens before; between
    salts they must not be shared even where they are equal."""
    request = sequence.request
    previous: object = (request.adapters, request.num_virtual)
    contents = []
    for position in range(end):
        token = position - request.num_virtual
        what = ("virtual", position) if token < 0 else (request.salt, sequence.token_ids[token])
        previous = hash((previous, what))
        contents.append(previous)
    return contents


class Stepper:
    """Runs steps; every clock is the number of steps times `seconds_per_step`."""

    def __init__(
        self,
        num_blocks: int = 64,
        *,
        prefix_cache: bool = True,
        seconds_per_step: float = 0.01,
        window: int | None = None,
        fairness: FairRules | None = None,
        **limits: object,
    ) -> None:
        caps = {"max_running": 8, "max_batch_tokens": 32, "max_chunk": 8, **limits}
        self.adapters = FakeAdapters()
        self.blocks = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            SchedulerLimits(**caps),  # type: ignore[arg-type]
            self.blocks,
            self.adapters,
            prefix_cache=prefix_cache,
            window=window,
            fairness=fairness,
            columns=lambda digest: 16,
        )
        self.seconds_per_step = seconds_per_step
        self.window = window
        self.num_steps = 0
        self.tracks: dict[str, Track] = {}
        self.live: set[str] = set()
        self.memory: FakeMemory | None = None
        self.tokens: Counter[tuple[str, str]] = Counter()  # cost served, by share

    @property
    def now(self) -> float:
        """The clock."""
        return self.num_steps * self.seconds_per_step

    def submit(
        self,
        name: str,
        prompt: int | tuple[int, ...],
        output: int = 4,
        *,
        adapters: tuple[str, ...] = (),
        virtual: int = 0,
        share: FairShare | None = None,
        priority: int = 0,
        time_limit: float | None = None,
        deadline: float | None = None,
        after: str | None = None,
        score_from: int | None = None,
        speculation: bool | None = None,
        salt: str = "",
        is_poisoned: bool = False,
    ) -> Sequence:
        """A prompt of that many tokens, or of these. Poisoned: its logits are not finite."""
        tokens = tuple(range(prompt)) if isinstance(prompt, int) else prompt
        request = EngineRequest(
            name,
            tokens,
            Stopping(output, time_limit=time_limit),
            adapters=tuple(AdapterShare(digest) for digest in adapters),
            num_virtual=virtual,
            share=share or FairShare(adapter=adapters[0] if adapters else ""),
            priority=priority,
            deadline=deadline,
            after=after,
            score_from=score_from,
            speculation=speculation,
            salt=salt,
        )
        sequence = Sequence(request, block_size=BLOCK)
        sequence.submitted_at = self.now
        self.tracks[name] = Track(self.num_steps, sequence, is_poisoned)
        self.live.add(name)
        self.scheduler.add(sequence)
        return sequence

    def load(self, digest: str) -> None:
        """A version arrives on the device."""
        self.adapters.ready.add(digest)
        self.scheduler.adapter_changed(digest)

    def fail(self, digest: str) -> None:
        """A version turns out to be broken."""
        self.adapters.failures[digest] = RuntimeError(digest)
        self.scheduler.adapter_changed(digest)

    def step(self) -> dict[str, int]:
        """One step; returns the chunk sizes by name."""
        for sequence in self.scheduler.sweep(self.now):
            self._forget(sequence)
        chunks = self.scheduler.plan(self.now)
        self.num_steps += 1
        self._run(chunks)
        return {chunk.sequence.id: chunk.num_tokens for chunk in chunks}

    def run(self, max_steps: int = 10_000) -> None:
        """Steps until nothing is left, with every invariant checked after each."""
        for _ in range(max_steps):
            if not self.live:
                return
            self.step()
            self.check()
        raise AssertionError(f"{sorted(self.live)} did not end")

    def check(self) -> None:
        """Raise AssertionError if anything disagrees with anything."""
        self.scheduler.check_integrity()
        known = {*self.scheduler.running, *(s.id for s in self.scheduler.waiting)}
        assert known == self.live, "a sequence was lost, or an ended one kept"

    def assert_clean(self) -> None:
        """Everything that was taken has been given back."""
        self.check()
        assert not self.live
        assert self.blocks.num_free == self.blocks.num_blocks
        assert not +self.adapters.holders

    def _run(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            sequence, track = chunk.sequence, self.tracks[chunk.sequence.id]
            end = sequence.num_computed + chunk.num_tokens
            self._check_cells(sequence, end)
            if self.memory is not None:
                self.memory.compute(sequence, end, self.window, is_poisoned=track.is_poisoned)
            self._count_prompt(sequence, end)
            sequence.num_computed = end
        for chunk in chunks:  # as the engine does: when all are computed
            self._settle(chunk.sequence)

    def _settle(self, sequence: Sequence) -> None:
        track, request = self.tracks[sequence.id], sequence.request
        if track.is_poisoned and not sequence.num_remaining:
            self._finish(sequence)
            return
        gives_token = not sequence.num_remaining and request.score_from is None
        if gives_token:
            sequence.token_ids.append(len(sequence.token_ids) % 7)
            self.tokens[_key(sequence)] += 2
            track.first_token = track.first_token or self.num_steps
        is_final = not sequence.num_remaining or (
            sequence.num_output >= request.stopping.max_output_tokens > 0
        )
        self.scheduler.computed(sequence, is_finite=gives_token or is_final)
        if is_final:
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self._forget(sequence)

    def _check_cells(self, sequence: Sequence, end: int) -> None:
        """All that the step reads and writes is the sequence's own, each position's once."""
        first_seen = 0 if self.window is None else sequence.num_computed - self.window + 1
        cells = sequence.cells(max(0, first_seen), end)
        assert len(set(cells.tolist())) == end - max(0, first_seen), "a position without a cell"
        held = set(sequence.held_blocks)
        assert set((sequence.cells(0, end) // BLOCK).tolist()) <= held, "a stranger's cell"

    def _count_prompt(self, sequence: Sequence, end: int) -> None:
        track = self.tracks[sequence.id]
        start = max(track.num_counted, sequence.num_computed)
        end = min(end, sequence.num_virtual + sequence.num_prompt)
        track.num_counted = max(track.num_counted, end)
        self.tokens[_key(sequence)] += max(0, end - start)

    def _forget(self, sequence: Sequence) -> None:
        self.live.remove(sequence.id)
        self.tracks[sequence.id].ended = self.num_steps
        if sequence.holds_adapters:
            self.adapters.holders.subtract(sequence.digests)


def _key(sequence: Sequence) -> tuple[str, str]:
    return sequence.request.share.namespace, sequence.request.share.adapter
