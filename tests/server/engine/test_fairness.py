"""Fair sharing, in engine steps and tokens: no clock, no luck."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from engine_support.stepping import BLOCK, Stepper

from polygraft.server.engine.fairness import FairRules
from polygraft.server.engine.messages import FairShare
from polygraft.server.engine.priorities import GUARANTEED

LONGEST_PROMPT = 128
SIZES = {"max_batch_tokens": 256, "max_chunk": 128}


class Load:
    """Random requests of one account. `backlog`: how many of them always live."""

    def __init__(
        self,
        stepper: Stepper,
        share: FairShare,
        *,
        outputs: tuple[int, int] = (16, 64),
        prompts: tuple[int, int] = (32, LONGEST_PROMPT),
        priority: int = 0,
        adapters: tuple[str, ...] = (),
    ) -> None:
        self.stepper = stepper
        self.share = share
        self.names: list[str] = []
        self._outputs, self._prompts = outputs, prompts
        self._priority, self._adapters = priority, adapters
        self._rng = random.Random(f"{share.namespace}/{share.adapter}")
        self._number = count()

    @property
    def cost(self) -> int:
        """What the account was served."""
        return self.stepper.tokens[self.share.namespace, self.share.adapter]

    def submit(self) -> None:
        """One more request."""
        rng, number = self._rng, next(self._number)
        name = f"{self.share.namespace}/{self.share.adapter}.{self._priority}.{number}"
        prompt = tuple(rng.randrange(1000) for _ in range(rng.randint(*self._prompts)))
        self.names.append(name)
        self.stepper.submit(
            name,
            prompt,
            rng.randint(*self._outputs),
            share=self.share,
            priority=self._priority,
            adapters=self._adapters,
        )

    def keep(self, backlog: int) -> None:
        """Top up to so many live requests."""
        live = sum(name in self.stepper.live for name in self.names[-4 * backlog :])
        for _ in range(backlog - live):
            self.submit()

    def percentile(self, measure: Callable[[str], int], part: float = 0.99) -> int:
        """Of a measure over the requests that ended."""
        values = sorted(measure(name) for name in self.names if name not in self.stepper.live)
        return values[min(len(values) - 1, int(part * len(values)))]

    def wait(self, name: str) -> int:
        """Steps to the first token."""
        return self.stepper.tracks[name].wait

    def latency(self, name: str) -> int:
        """Steps to the last token."""
        return self.stepper.tracks[name].latency


def share(adapter: str, namespace: str = "") -> FairShare:
    return FairShare(namespace, adapter)


@pytest.mark.parametrize("max_running", [2, 8, 64])
@pytest.mark.parametrize("num_blocks", [128, 4000])
def test_two_backlogged_accounts_never_differ_by_more_than_the_bound(
    max_running: int, num_blocks: int
) -> None:
    stepper = Stepper(num_blocks, max_running=max_running, **SIZES)
    short = Load(stepper, share("short"), outputs=(1, 16))
    long = Load(stepper, share("long"), outputs=(100, 200))
    bound = 2 * max(LONGEST_PROMPT, 2 * num_blocks * BLOCK)  # rule 5: w_in = 1, w_out = 2
    worst = 0
    for _ in range(1500):
        short.keep(100)
        long.keep(100)
        stepper.step()
        worst = max(worst, abs(short.cost - long.cost))
    assert worst <= bound
    # Displacing keeps it far below what admission alone could promise.
    assert worst <= 2 * (FairRules().turn + FairRules().burst)
    assert min(short.cost, long.cost) > 10 * LONGEST_PROMPT


@pytest.mark.parametrize("max_running", [4, 8, 64])
def test_sixteen_equal_adapters_are_served_equally(max_running: int) -> None:
    stepper = Stepper(4000, max_running=max_running, **SIZES)
    loads = []
    for i in range(16):
        stepper.load(f"d{i}")
        lengths = (16, 256) if i % 2 else (8, 64)
        loads.append(Load(stepper, share(f"d{i}"), outputs=lengths, adapters=(f"d{i}",)))
    for _ in range(1000):
        for i, load in enumerate(loads):
            load.keep(80 if i == 0 else 16)
        stepper.step()
    costs = [load.cost for load in loads]
    jain = sum(costs) ** 2 / (len(costs) * sum(cost * cost for cost in costs))
    assert jain >= 0.95, costs


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize(
    ("num_blocks", "outputs", "prompts"),
    [(4000, (64, 256), (32, 128)), (1500, (500, 1000), (16, 32)), (4000, (4, 16), (1000, 2000))],
    ids=["places full", "blocks full", "token budget full"],
)
def test_a_hostile_adapter_does_not_move_the_p99_of_another(
    num_blocks: int, outputs: tuple[int, int], prompts: tuple[int, int], prefix_cache: bool
) -> None:
    percentiles = []
    for backlog in (0, 100):  # B alone, then beside an A that wants far more than its share
        stepper = Stepper(num_blocks, max_running=16, prefix_cache=prefix_cache, **SIZES)
        hostile = Load(stepper, share("a"), outputs=outputs, prompts=prompts)
        other, arrivals = Load(stepper, share("b")), random.Random(7)
        for _ in range(2000):
            if backlog:
                hostile.keep(backlog)
            if arrivals.random() < 0.08:  # on average 3 of the 16 places
                other.submit()
            stepper.step()
        percentiles.append((other.percentile(other.wait), other.percentile(other.latency)))
        if backlog:
            served = sum(name not in stepper.live for name in other.names)
            assert served > 100
            assert hostile.cost > other.cost, "what B does not want is A's"
    (wait_alone, latency_alone), (wait, latency) = percentiles
    assert latency <= 1.5 * latency_alone
    assert wait <= math.ceil(1.5 * wait_alone), "steps are whole"


def test_weights_divide_what_two_accounts_want() -> None:
    rules = FairRules(adapter_weights={"heavy": 3.0})
    stepper = Stepper(4000, max_running=16, fairness=rules, **SIZES)
    heavy, light = Load(stepper, share("heavy")), Load(stepper, share("light"))
    for _ in range(1000):
        heavy.keep(40)
        light.keep(40)
        stepper.step()
    assert heavy.cost / light.cost == pytest.approx(3.0, rel=0.1)


def test_namespaces_have_weights_too() -> None:
    rules = FairRules(namespace_weights={"heavy": 3.0})
    stepper = Stepper(4000, max_running=16, fairness=rules, **SIZES)
    heavy, light = Load(stepper, share("a", "heavy")), Load(stepper, share("a", "light"))
    for _ in range(1000):
        heavy.keep(40)
        light.keep(40)
        stepper.step()
    assert heavy.cost / light.cost == pytest.approx(3.0, rel=0.1)


def test_a_namespace_gains_nothing_by_spreading_over_adapters() -> None:
    stepper = Stepper(4000, max_running=16, **SIZES)
    many = [Load(stepper, share(f"a{i}", "many")) for i in range(10)]
    one = Load(stepper, share("a", "one"))
    for _ in range(1000):
        for load in many:
            load.keep(5)
        one.keep(40)
        stepper.step()
    spread = sum(load.cost for load in many)
    assert spread / one.cost == pytest.approx(1.0, rel=0.1)
    assert min(load.cost for load in many) > 0.7 * spread / len(many)


def test_idle_time_is_not_saved_up() -> None:
    stepper = Stepper(4000, max_running=16, **SIZES)
    busy, sleeper = Load(stepper, share("busy")), Load(stepper, share("sleeper"))
    sleeper.submit()
    for _ in range(600):
        busy.keep(40)
        stepper.step()
    before = busy.cost, sleeper.cost
    for _ in range(300):
        busy.keep(40)
        sleeper.keep(40)
        stepper.step()
    ahead = (sleeper.cost - before[1]) - (busy.cost - before[0])
    assert 0 <= ahead <= FairRules().burst + FairRules().turn


def test_what_is_computed_again_and_what_is_cached_is_not_charged() -> None:
    stepper = Stepper(12, max_chunk=32)
    for name in ("old", "young"):  # 7 + 30 positions each: ten of the twelve blocks
        stepper.submit(name, 7, 30, share=share(name))
    stepper.run()
    assert stepper.scheduler.num_preemptions > 0
    line = stepper.scheduler.waiting.lines[0]
    for name in ("old", "young"):
        assert line.leaf(stepper.tracks[name].sequence).counter == 7 + 2 * 30
    stepper.submit("again", 7, 1, share=share("again"))
    stepper.run()
    counter = line.leaf(stepper.tracks["again"].sequence).counter
    assert counter == (7 - BLOCK) + 2, "its first block was in the cache"


def test_the_account_served_most_makes_room_first() -> None:
    stepper = Stepper(16, prefix_cache=False)
    stepper.submit("much", 20, 30, share=share("much"))
    for _ in range(10):
        stepper.step()
    stepper.submit("little", 8, 30, share=share("little"))
    while not stepper.scheduler.num_preemptions:
        stepper.step()
        stepper.check()
    assert list(stepper.scheduler.running) == ["little"], "though it was admitted last"
    stepper.run()
    stepper.assert_clean()


def test_places_go_round_when_there_are_fewer_than_accounts() -> None:
    stepper = Stepper(4000, max_running=1, fairness=FairRules(turn=100.0), **SIZES)
    for name in "ab":
        stepper.submit(name, 8, 1000, share=share(name))
    holders = []
    while len(stepper.live) == 2:
        holders += stepper.step()
    turns = [b for a, b in pairwise(holders) if a != b]
    assert len(turns) >= 10
    gaps = stepper.scheduler.num_displaced
    assert gaps == len(turns), "a place changes hands only by displacing"
    first = stepper.tracks["a"].sequence
    second = stepper.tracks["b"].sequence
    assert max(first.num_output, second.num_output) == 1000
    assert min(first.num_output, second.num_output) >= 900


def test_a_higher_class_goes_first_and_takes_places_but_not_the_last_ones() -> None:
    stepper = Stepper(4000, max_running=8, **SIZES)
    for i in range(20):
        stepper.submit(f"low{i}", 8, 500, priority=-1)
    for _ in range(5):
        stepper.step()
    for i in range(20):
        stepper.submit(f"high{i}", 8, 500, priority=1)
    stepper.step()
    stepper.check()
    running = sorted(stepper.scheduler.running)
    assert sum(name.startswith("high") for name in running) == 7
    assert running[-1] == "low0", "the guaranteed place goes to the one admitted first"


def test_a_lower_class_gets_its_guaranteed_part_of_a_lasting_overload() -> None:
    stepper = Stepper(4000, max_running=16, **SIZES)
    high = Load(stepper, share("high"), priority=1)
    low = Load(stepper, share("low"), priority=-1)
    for _ in range(3000):
        high.keep(40)
        low.keep(40)
        stepper.step()
    part = low.cost / (low.cost + high.cost)
    assert 0.5 * GUARANTEED <= part <= 2 * GUARANTEED
    stuck = [name for name in low.names if name in stepper.live][:1]
    assert low.names.index(stuck[0]) > 10, "they end, in order"


def test_a_step_costs_the_same_with_ten_and_with_thousands_waiting() -> None:
    def calls(num_waiting: int) -> float:
        stepper = Stepper(2000, max_running=8, **SIZES)
        for i in range(8):
            stepper.submit(f"r{i}", 8, 300, share=share(f"r{i}"))
        stepper.step()
        for i in range(num_waiting):
            cold = (f"cold{i}",) if i % 2 else ()
            stepper.submit(f"w{i}", 8, 300, share=share(f"r{i}"), adapters=cold)
        counted = 0

        def profile(*_: object) -> None:
            nonlocal counted
            counted += 1

        sys.setprofile(profile)
        try:
            for _ in range(20):
                stepper.step()
        finally:
            sys.setprofile(None)
        return counted / 20

    few, many = calls(10), calls(4000)
    assert many <= 1.2 * few, f"{few} calls a step with 10 waiting, {many} with 4000"


def test_a_namespace_takes_its_place_from_one_that_spreads_over_adapters() -> None:
    stepper = Stepper(4000, max_running=8, **SIZES)
    for i in range(16):
        stepper.submit(f"many{i}", 8, 500, share=share(f"a{i}", "many"))
    stepper.step()
    for i in range(8):
        stepper.submit(f"one{i}", 8, 500, share=share("a", "one"))
    stepper.step()
    assert sum(name.startswith("one") for name in stepper.scheduler.running) == 4
