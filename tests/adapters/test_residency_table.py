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
PATIENCE = 2.0
NAMES = st.sampled_from(sorted(RANKS))


class TableMachine(RuleBasedStateMachine):
    """The threads of residency.py, one step at a time, in an order that hypothesis chooses."""

    @initialize(host_copies=st.integers(0, 6))
    def make(self, host_copies: int) -> None:
        self.limit = host_copies * 1024
        self.now = 0.0
        self.rotation = Rotation(PATIENCE, lambda: self.now)
        self.table = ResidencyTable(self.limit, lambda: None, self.rotation)
        self.device = FakeDevice(64)
        self.held: dict[str, int] = {}
        self.computing: list[str] = []
        self.reading: list[Entry] = []
        self.copying: Entry | None = None
        self.freeing: Entry | None = None
        self.placed: list[str] = []

    @rule(name=NAMES)
    def acquire(self, name: str) -> None:
        entry = self.table.entry(name)
        entry.references += 1
        self.held[name] = self.held.get(name, 0) + 1
        self.table.request(entry)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.table.ready & self.held.keys())
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.table.ready & self.held.keys())))
        if self.computing.count(name) < self.held[name]:
            self.table.entries[name].holders += 1
            self.computing.append(name)

    @precondition(lambda self: self.computing)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = self.computing.pop(data.draw(st.integers(0, len(self.computing) - 1)))
        self.table.drop(self.table.entries[name])

    @rule()
    def stop_draining(self) -> None:
        usable_again = self.table.stop_draining()
        assert usable_again is None or usable_again in self.table.ready

    @precondition(lambda self: self.idle_references())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.idle_references()))
        entry = self.table.entries[name]
        entry.references -= 1
        self.held[name] -= 1
        if not self.held[name]:
            del self.held[name]
        self.table.let_go(entry)

    @rule(name=NAMES, waits=st.booleans())
    def unload(self, name: str, waits: bool) -> None:
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
        if entry is not None:
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
                assert had_turn or not freed.is_held, "it had no turn yet"

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

    def idle_references(self) -> list[str]:
        return sorted(n for n, count in self.held.items() if count > self.computing.count(n))

    def placer_is_idle(self) -> bool:
        return self.copying is None and self.freeing is None

    @invariant()
    def tables_agree(self) -> None:
        if hasattr(self, "table"):
            self.table.check_integrity()
            on_device = {e.digest for e in self.table.entries.values() if e.on_device}
            assert on_device <= self.device.filled
            assert set(self.computing) <= on_device, "what is computed with left the device"
            assert {n: e.references for n, e in self.table.entries.items() if e.references} == (
                self.held
            )

    @invariant()
    def host_bytes_exceed_the_limit_only_by_what_must_stay(self) -> None:
        if not hasattr(self, "table"):
            return
        head = self.table.to_place[0] if self.table.to_place else None
        must_stay = sum(
            entry.host.nbytes
            for entry in self.table.entries.values()
            if entry.host and (entry is head or entry.stage is Stage.COPYING)
        )
        assert self.table.host_used <= max(self.limit, must_stay) + 64 * 64

    def teardown(self) -> None:
        """Whatever happened: once all threads run on and whoever computes comes to an end, every
        version that is wanted gets its turn on the device, though they do not all fit at once."""
        if not hasattr(self, "table"):
            return
        for name in self.held:
            self.table.request(self.table.entry(name))
        had_turn = set()
        for _ in range(400):
            self.run_all_threads_once()
            had_turn |= self.table.ready
            self.now += PATIENCE / 8
            for name in self.computing:
                self.table.drop(self.table.entries[name])
            self.computing = sorted(self.table.ready & self.held.keys())
            for name in self.computing:  # they all begin again at once, if they may
                self.table.entries[name].holders += 1
        assert had_turn >= self.held.keys()

    def run_all_threads_once(self) -> None:
        if self.copying:
            self.finish_copying(fails=False)
        if self.freeing:
            self.finish_freeing()
        while self.reading:
            entry = self.reading.pop()
            self.table.was_read(entry, weights_of_rank(RANKS[entry.digest]))
        if self.table.to_read:
            self.start_reading()
        self.table.stop_draining()
        if self.placer_is_idle() and self.table.has_work_for_placer():
            self.place()


TestResidencyTable = TableMachine.TestCase
TestResidencyTable.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
