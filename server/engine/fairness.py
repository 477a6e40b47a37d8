"""Who is served next: weighted fair sharing by virtual token counters.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, on two levels: first among
namespaces, then among the adapters of one. Every account counts the tokens it was served, divided
by its weight; the smallest counter is served next. An account that wakes up after it had nothing
waiting is lifted to its waiting siblings, so that idle time is not saved up, but for one `burst`.

Knows sequences by their share only: no blocks, no adapters on devices, no clock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from polygraft.server.engine.messages import FairShare
from polygraft.server.engine.sequence import Sequence

INPUT_COST = 1.0  # per prompt token that was computed
OUTPUT_COST = 2.0  # per generated token
_MIN_PRUNE = 64  # accounts of one parent that are kept without looking for idle ones


class Account:
    """One node of the tree: the root of a priority class, a namespace, or an adapter (a leaf)."""

    def __init__(self, name: str, parent: Account | None, weight: float = 1.0) -> None:
        self.name = name
        self.parent = parent
        self.weight = weight
        self.counter = 0.0  # cost served / weight; never falls
        self.num_waiting = 0  # sequences in line, here and below
        self.num_running = 0
        self.line: OrderedDict[str, Sequence] = OrderedDict()  # leaves only, first come first
        self.children: dict[str, Account] = {}
        self._served = 0.0  # counter of the child that was served last
        # Children with someone in line, by counter. Counters only grow, so an entry that is out of
        # date stands too far in front, never too far behind, and is put right when it is met.
        self._heap: list[tuple[float, int, Account]] = []
        self._is_in_heap = False  # in the parent's
        self._ticket = count()
        self._prune_at = _MIN_PRUNE

    @property
    def above(self) -> Account:
        """The parent of an account that is not the root."""
        assert self.parent is not None
        return self.parent

    def child(self, name: str, weights: Mapping[str, float]) -> Account:
        """The account of that name below this one, opened if there is none."""
        found = self.children.get(name)
        if found is None:
            if len(self.children) >= self._prune_at:
                self._prune()
            found = self.children[name] = Account(name, self, weights.get(name, 1.0))
        return found

    def first_child(self) -> Account | None:
        """The child with someone in line whose counter is the smallest."""
        while self._heap:
            counter, ticket, child = self._heap[0]
            if not child.num_waiting:
                heapq.heappop(self._heap)
                child._is_in_heap = False
            elif child.counter > counter:
                heapq.heapreplace(self._heap, (child.counter, ticket, child))
            else:
                return child
        return None

    def first_children(self, limit: int) -> list[Account]:
        """Up to `limit` children with someone in line, the smallest counter first."""
        taken: list[tuple[float, int, Account]] = []
        while len(taken) < limit and self.first_child() is not None:
            taken.append(heapq.heappop(self._heap))
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [child for _, _, child in taken]

    def count_waiting(self, change: int) -> None:
        """So many more (or fewer) sequences are in line here; keeps the parent's order."""
        self.num_waiting += change
        if self.num_waiting and self.parent is not None and not self._is_in_heap:
            self._is_in_heap = True
            entry = (self.counter, next(self.parent._ticket), self)
            heapq.heappush(self.parent._heap, entry)

    def wake(self, burst: float) -> None:
        """Lift the counter to the siblings that wait, less `burst`, before somebody gets in line
        where nobody was. With no sibling in line, to the one that was served last."""
        if not self.num_waiting:
            first = self.above.first_child()
            floor = self.above._served if first is None else first.counter
            self.counter = max(self.counter, floor - burst)

    def note_served(self) -> None:
        """One of its sequences was admitted."""
        self.above._served = max(self.above._served, self.counter)

    def path(self) -> Iterator[Account]:
        """This account and those above it, up to the namespace."""
        account: Account = self
        while account.parent is not None:
            yield account
            account = account.parent

    def _prune(self) -> None:
        """Forget children that nobody uses and that would be lifted over their counter anyway."""
        first = self.first_child()
        floor = self._served if first is None else first.counter
        self.children = {
            name: child
            for name, child in self.children.items()
            if child.num_running or child._is_in_heap or child.counter > floor
        }
        self._prune_at = max(_MIN_PRUNE, 2 * len(self.children))

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts agree with the line and the accounts below."""
        below = self.children.values()
        if self.children:
            assert not self.line, f"{self.name} has both a line and accounts below"
            assert self.num_waiting == sum(child.num_waiting for child in below)
            assert self.num_running == sum(child.num_running for child in below)
        else:
            assert self.num_waiting == len(self.line), f"{self.name} counts its line wrong"
        in_heap = [account for _, _, account in self._heap]
        assert len(set(map(id, in_heap))) == len(in_heap), "an account is queued twice"
        for child in below:
            assert child._is_in_heap == (child in in_heap)
            assert child._is_in_heap or not child.num_waiting, f"{child.name} would never be served"
            child.check_integrity()


@dataclass(frozen=True, slots=True)
class FairRules:
    """How power is divided. Weights by name; who is not named has weight 1.

    burst: how far, in cost, an account that wakes up may lag behind those that wait.
    turn: after how much cost a place goes round when there are fewer places than accounts.
    """

    burst: float = 2048.0
    turn: float = 1024.0
    namespace_weights: Mapping[str, float] = field(default_factory=dict)
    adapter_weights: Mapping[str, float] = field(default_factory=dict)


class FairLine:
    """The sequences of one priority class that can be admitted, in fair order."""

    def __init__(self, rules: FairRules) -> None:
        self._rules = rules
        self._root = Account("", None)

    @property
    def num_waiting(self) -> int:
        """Sequences in line."""
        return self._root.num_waiting

    @property
    def num_running(self) -> int:
        """Sequences of this class that were admitted and did not leave yet."""
        return self._root.num_running

    def leaf(self, sequence: Sequence) -> Account:
        """The account that a sequence is charged to; the one above it is its namespace."""
        share, rules = sequence.request.share, self._rules
        namespace = self._root.child(share.namespace, rules.namespace_weights)
        return namespace.child(share.adapter, rules.adapter_weights)

    def rank(self, sequence: Sequence) -> tuple[float, float]:
        """What was served to its namespace and its adapter; the smaller goes first."""
        leaf = self.leaf(sequence)
        return leaf.above.counter, leaf.counter

    def add(self, sequence: Sequence, *, in_front: bool = False) -> None:
        """Get in line. `in_front` of its account's line: it was admitted before, and preempted."""
        leaf = self.leaf(sequence)
        leaf.line[sequence.id] = sequence
        if in_front:
            leaf.line.move_to_end(sequence.id, last=False)
        for account in leaf.path():
            if not in_front:
                account.wake(self._rules.burst)
            account.count_waiting(1)
        self._root.num_waiting += 1

    def remove(self, sequence: Sequence) -> None:
        """Leave the line, from any place in it."""
        leaf = self.leaf(sequence)
        del leaf.line[sequence.id]
        for account in leaf.path():
            account.count_waiting(-1)
        self._root.num_waiting -= 1

    def heads(self, limit: int) -> list[Sequence]:
        """The first of each account's line, in fair order; `limit` of them at most."""
        found: list[Sequence] = []
        for namespace in self._root.first_children(limit):
            leaves = namespace.first_children(limit - len(found))
            found += [next(iter(leaf.line.values())) for leaf in leaves]
            if len(found) == limit:
                break
        return found

    def start(self, sequence: Sequence) -> None:
        """It was admitted."""
        for account in self.leaf(sequence).path():
            account.num_running += 1
            account.note_served()
        self._root.num_running += 1

    def stop(self, sequence: Sequence) -> None:
        """It ended or was preempted."""
        for account in self.leaf(sequence).path():
            account.num_running -= 1
        self._root.num_running -= 1

    def charge(self, sequence: Sequence, cost: float) -> None:
        """It was served."""
        for account in self.leaf(sequence).path():
            account.counter += cost / account.weight

    def claims(self, waiting: Sequence, running: Iterable[Sequence]) -> list[Sequence]:
        """Those of the running sequences of this class whose place a waiting one may take.

        It may if its account was served no more than the other one and, by weight, would not run
        more than it after the exchange. Where places are too few for that (one against none), only
        if it was served less by a whole `turn`: places then go round in turns of that cost.
        """
        mine = self.leaf(waiting)
        verdicts: dict[FairShare, bool] = {}
        found = []
        for sequence in running:
            share = sequence.request.share
            if share not in verdicts:
                verdicts[share] = _may_displace(mine, self.leaf(sequence), self._rules.turn)
            if verdicts[share]:
                found.append(sequence)
        return found

    def check_integrity(self) -> None:
        """Raise AssertionError unless every account counts right."""
        self._root.check_integrity()


def _may_displace(mine: Account, other: Account, turn: float) -> bool:
    if mine is other:
        return False
    if mine.above is not other.above:
        mine, other = mine.above, other.above
    after, before = (mine.num_running + 1) / mine.weight, (other.num_running - 1) / other.weight
    return mine.counter + (0.0 if after <= before else turn) <= other.counter
