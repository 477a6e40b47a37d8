"""The workload is the same everywhere, has the shape it says, and survives the way to a worker."""

import json
from collections import Counter

from benchmarks.workload import RequestTrace, Shape, Workload, make_workload

SHAPE = Shape(vocab_size=1000)
ADAPTERS = [f"adapter-{index}" for index in range(8)]


def workload(seed: int = 0, num_requests: int = 400) -> Workload:
    return make_workload(SHAPE, ADAPTERS, num_requests=num_requests, concurrency=4, seed=seed)


def test_the_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    assert workload() == workload()
    assert workload(seed=1) != workload()


def test_the_first_requests_are_pinned_so_that_figures_stay_comparable() -> None:
    first = workload().requests[0]
    assert len(first.prompt_token_ids) == 100
    assert first.prompt_token_ids[:3] == (482, 122, 236)
    assert first.adapter == "adapter-0"


def test_prompts_and_outputs_have_the_promised_lengths() -> None:
    lengths = [len(request.prompt_token_ids) for request in workload().requests]
    assert (min(lengths), max(lengths)) == (32, 128)
    assert workload().num_output_tokens == 400 * 64


def test_adapters_are_asked_for_by_zipf() -> None:
    counts = Counter(request.adapter for request in workload(num_requests=20_000).requests)
    harmonic = sum(1 / k for k in range(1, 9))
    for k, name in enumerate(ADAPTERS, start=1):
        expected = 20_000 / k / harmonic
        assert abs(counts[name] - expected) < 5 * expected**0.5


def test_a_workload_survives_json() -> None:
    assert Workload.from_json(json.loads(json.dumps(workload().to_json()))) == workload()


def test_a_trace_tells_first_token_and_gaps() -> None:
    trace = RequestTrace(submitted=10.0)
    trace.record([1], now=10.5)
    trace.record([2, 3], now=11.0)
    assert trace.time_to_first_token == 0.5
    assert trace.inter_token_latencies == [0.5, 0.0]
