"""Residency without threads: any order of requests, reads, copies and frees keeps its promises."""

from __future__ import annotations

from adapter_support.fake_device import FakeDevice, weights_of_rank
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from polygraft.adapters.residency_table import ResidencyTable
from polygraft.adapters.resident import Entry, Stage
from polygraft.adapters.rotation import Rotation

RANKS = {f"v{i}": rank for i, rank in enumerate((16, 16, 32, 32, 64, 1))}
NAMES = st.sampled_from(sorted(RANKS))
# Versions of one request: together they fit the 64 rows of the device.
GROUPS = st.sampled_from(
    [
        *[("v0",), ("v2",), ("v4",), ("v5",), ("v0", "v1"), ("v0", "v2"), ("v2", "v3")],
        *[("v0", "v1", "v2"), ("v1", "v5", "v3"), ("v0", "v1", "v5")],
    ]
)
PATIENCE = 2.0


class TableMachine(RuleBasedStateMachine):
    """The threads of residency.py, one step at a time, in an order that hypothesis chooses."""

    @initialize(host_copies=st.integers(0, 6))
    def make(self, host_copies: int) -> None:
        self.limit = host_copies * 1024
        self.now = 0.0
        rotation = Rotation(PATIENCE, lambda: self.now)
        self.table = ResidencyTable(self.limit, lambda: None, rotation)
        self.device = FakeDevice(64)
        self.waiting: list[tuple[str, ...]] = []
        self.running: list[tuple[str, ...]] = []
        self.reading: list[Entry] = []
        self.copying: Entry | None = None
        self.freeing: Entry | None = None

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def stop_draining(self) -> None:
        usable_again = self.table.stop_draining()
        assert usable_again is None or usable_again in self.table.ready

    @rule(group=GROUPS)
    def come(self, group: tuple[str, ...]) -> None:
        for entry in self.table.want(group):
            self.table.request(entry)
        self.waiting.append(group)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        ready = self.table.ready.issuperset(self.waiting[index])
        assert self.table.hold(self.waiting[index]) == ready
        if ready:
            self.running.append(self.waiting.pop(index))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.table.drop(group)
        self.table.unwant(group)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.table.unwant(self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        entry = self.table.entries.get(name)
        if entry is None:
            return
        entry.unloaders += 1
        self.table.let_go(entry)
        entry.unloaders -= 1
        if self.table.is_absent(entry):
            self.table.drop_host(entry)
        self.table.let_go(entry)

    @precondition(lambda self: self.table.to_read and len(self.reading) < 2)
    @rule()
    def start_reading(self) -> None:
        entry = self.table.next_to_read()
        assert entry is not None
        self.reading.append(entry)

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), fails=st.booleans())
    def finish_reading(self, data: st.DataObject, fails: bool) -> None:
        entry = self.reading.pop(data.draw(st.integers(0, len(self.reading) - 1)))
        if fails:
            self.table.failed(entry, OSError())
        else:
            self.table.was_read(entry, weights_of_rank(RANKS[entry.digest]))

    @precondition(lambda self: self.placer_is_idle() and self.table.has_work_for_placer())
    @rule()
    def place(self) -> None:
        if self.table.to_free:
            self.freeing = self.table.to_free.popleft()
            return
        entry = self.table.next_to_place()
        if entry is None:
            return
        assert entry.host is not None
        if self.device.reserve(entry.digest, entry.host):
            self.table.start_copying(entry)
            self.copying = entry
        else:
            self.table.make_room(entry)
            for freed in self.table.to_free:
                had_turn = self.now >= freed.placed_at + PATIENCE
                assert had_turn or not freed.is_wanted, "it had no turn yet"

    @precondition(lambda self: self.copying)
    @rule(fails=st.booleans())
    def finish_copying(self, fails: bool) -> None:
        entry, self.copying = self.copying, None
        assert entry is not None
        assert entry.host is not None
        if fails:
            self.device.free(entry.digest)
            self.table.failed(entry, OSError())
        else:
            self.device.copy(entry.digest, entry.host)
            self.table.was_copied(entry)

    @precondition(lambda self: self.freeing)
    @rule()
    def finish_freeing(self) -> None:
        entry, self.freeing = self.freeing, None
        assert entry is not None
        self.device.free(entry.digest)
        self.table.was_freed(entry)

    def placer_is_idle(self) -> bool:
        return self.copying is None and self.freeing is None

    @invariant()
    def tables_agree(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_integrity()
        on_device = {e.digest for e in self.table.entries.values() if e.on_device}
        assert on_device <= self.device.filled
        assert {name for group in self.running for name in group} <= on_device
        for name, entry in self.table.entries.items():
            assert entry.holders == sum(name in group for group in self.running)
            assert entry.references == sum(name in g for g in self.running + self.waiting)

    @invariant()
    def host_bytes_exceed_the_limit_only_by_what_must_stay(self) -> None:
        if not hasattr(self, "table"):
            return
        first = self.table.first_in_line()
        must_stay = sum(
            entry.host.nbytes
            for entry in self.table.entries.values()
            if entry.host and (entry is first or entry.stage is Stage.COPYING)
        )
        assert self.table.host_used <= max(self.limit, must_stay) + 64 * 64

    def teardown(self) -> None:
        """Whatever happened: everybody gets all it wants at the same time, in turn, though whoever
        has had it comes again at once."""
        if not hasattr(self, "table"):
            return
        for group in self.waiting:
            for name in group:  # a load that failed is tried again, as the next acquire would
                self.table.request(self.table.entries[name])
        started: set[tuple[str, ...]] = set(self.running)
        wanted = started.union(self.waiting)
        for _ in range(2000):
            if started == wanted:
                return
            self.run_all_threads_once()
            self.tables_agree()
            self.now += PATIENCE / 8
            for group in list(self.running):
                self.running.remove(group)
                self.table.drop(group)
                self.table.unwant(group)
                self.come(group)
            for group in list(self.waiting):
                if self.table.hold(group):
                    self.waiting.remove(group)
                    self.running.append(group)
                    started.add(group)
        raise AssertionError(f"{wanted - started} wait for ever")

    def run_all_threads_once(self) -> None:
        if self.copying:
            self.finish_copying(fails=False)
        if self.freeing:
            self.finish_freeing()
        self.table.stop_draining()
        if self.placer_is_idle() and self.table.has_work_for_placer():
            self.place()
        while self.table.to_read and len(self.reading) < 2:
            self.start_reading()
        while self.reading:
            entry = self.reading.pop()
            self.table.was_read(entry, weights_of_rank(RANKS[entry.digest]))


TestResidencyTable = TableMachine.TestCase
TestResidencyTable.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
