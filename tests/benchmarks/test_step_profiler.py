"""Time goes to the innermost function that has a category; what profiling costs is left out."""

from collections.abc import Callable
from types import FunctionType

import pytest
from benchmarks.step_profiler import (
    REST,
    SCHEDULING,
    StepProfiler,
    category_of,
    seconds_per_event,
)


@pytest.mark.parametrize(
    ("module", "function", "category"),
    [
        ("polygraft.kernels.linear", "PackedLinear.__call__", "matrix products"),
        ("polygraft.kernels.grouped", "AdapterGroup.add_", "LoRA"),
        ("polygraft.kernels.attention", "PagedAttention.__call__", "attention"),
        ("polygraft.server.engine.model_runner", "OutputHead.forward", "output head"),
        ("polygraft.server.engine.scheduler", "Scheduler.plan", SCHEDULING),
        ("polygraft.server.engine.batch_builder", "BatchBuilder.build", "batch building"),
        ("polygraft.server.engine.commit", "commit", "sampling and commit"),
        (
            "transformers.models.llama.modeling_llama",
            "LlamaRMSNorm.forward",
            "norms, positions, activations",
        ),
        ("transformers.models.llama.modeling_llama", "LlamaDecoderLayer.forward", "layer glue"),
        ("polygraft.kernels.brand_new", "anything", "kernel brand_new"),
        ("torch.nn.functional", "silu", None),
    ],
)
def test_functions_open_their_categories(module: str, function: str, category: str | None) -> None:
    assert category_of(module, function) == category


def placed(module: str, name: str, function: Callable[[], None]) -> Callable[[], None]:
    """The function as if it stood in another module under another name."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_qualname=name)
    scope = {**function.__globals__, "__name__": module}
    return FunctionType(code, scope, name, function.__defaults__, function.__closure__)


class Clock:
    """Stands still but for `pass_by`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_goes_to_the_innermost_category_and_back(clock: Clock) -> None:
    attend = placed("polygraft.kernels.attention", "attend", lambda: clock.pass_by(5))

    def layer() -> None:
        clock.pass_by(1)
        attend()
        clock.pass_by(2)

    profiler = StepProfiler(clock)
    profiler.run(placed("polygraft.server.engine.model_runner", "layer", layer))
    assert profiler.seconds == {REST: 0, "layer glue": 3, "attention": 5}


def test_inside_the_output_head_a_matrix_product_is_the_heads(clock: Clock) -> None:
    linear = placed("polygraft.kernels.linear", "PackedLinear.__call__", lambda: clock.pass_by(4))
    profiler = StepProfiler(clock)
    profiler.run(placed("m", "OutputHead.forward", lambda: linear()))
    assert profiler.seconds == {REST: 0, "output head": 4}


def test_an_error_ends_the_categories_that_it_leaves(clock: Clock) -> None:
    def fails() -> None:
        clock.pass_by(1)
        raise ConnectionError

    failing = placed("polygraft.kernels.attention", "attend", fails)

    def survives() -> None:
        with pytest.raises(ConnectionError):
            failing()
        clock.pass_by(2)

    profiler = StepProfiler(clock)
    profiler.run(placed("polygraft.server.engine.sites", "survives", survives))
    assert profiler.seconds == {REST: 0, "layer glue": 2, "attention": 1}


def test_what_profiling_costs_is_taken_from_where_it_was_spent(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("benchmarks.step_profiler.seconds_per_event", lambda: 0.5)
    profiler = StepProfiler(clock)
    profiler.seconds = {REST: 0.0, "LoRA": 6.0, "attention": 3.0, SCHEDULING: 1.0}
    profiler.events = {REST: 0, "LoRA": 6, "attention": 4, SCHEDULING: 10}
    assert profiler.shares() == {REST: 0, "LoRA": 0.75, "attention": 0.25, SCHEDULING: 0}


def test_an_event_costs_next_to_nothing_but_something() -> None:
    assert 0 < seconds_per_event() < 1e-3
