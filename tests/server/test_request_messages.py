"""What a message can say that no request may: refused by field, whatever a client allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from polygraft.adapters.errors import InvalidRequest
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import inputs_pb2, scoring_pb2
from polygraft.server.engine.constraint import Constraint, ConstraintKind
from polygraft.server.grpc.generation_requests import read_generate, read_score
from polygraft.server.requests import Priority, WeightedReference


def message(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt="Hi", **fields)


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [
        (0, 1_000_000_000),
        (1, 2**31 - 1),
        (0, -1_000_000_000),
        (1, -1),
        (-1, 1),
        (315_576_000_001, 0),
        (-(2**63), 0),
    ],
)
def test_a_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    stopping = pb.Stopping(time_limit=Duration(seconds=seconds, nanos=nanos))
    with pytest.raises(InvalidRequest) as caught:
        read_generate(message(stopping=stopping))
    assert caught.value.item == "stopping.time_limit"
    assert str(nanos) in caught.value.found  # type: ignore[operator]


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (Duration(), 0.0),
        (Duration(nanos=1), 1e-9),
        (Duration(seconds=-3, nanos=-500_000_000), -3.5),
        (Duration(seconds=315_576_000_000), 315_576_000_000.0),
    ],
)
def test_a_duration_is_read_in_seconds(duration: Duration, seconds: float) -> None:
    """Whether it makes sense as a limit is for the checks behind this to say."""
    read = read_generate(message(stopping=pb.Stopping(time_limit=duration)))
    assert read.stopping.time_limit == seconds


@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1])
def test_a_priority_that_does_not_exist_is_refused(value: int) -> None:
    requests: list[tuple[Any, Any]] = [
        (read_generate, message(priority=value)),
        (read_score, scoring_pb2.ScoreRequest(priority=value)),  # type: ignore[arg-type]
    ]
    for read, request in requests:
        with pytest.raises(InvalidRequest) as caught:
            read(request)
        assert (caught.value.item, caught.value.found) == ("priority", value)


def test_an_unset_priority_is_normal() -> None:
    assert read_generate(message()).priority is Priority.NORMAL


def test_an_empty_constraint_is_refused_and_none_is_none() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_generate(message(constraint=pb.Constraint()))
    assert (caught.value.code, caught.value.item) == ("INVALID_CONSTRAINT", "constraint.kind")
    assert read_generate(message()).constraint is None


def test_constraints_are_read_by_kind() -> None:
    texts = ["ja", 'n"ein', "多分"]
    expected = [
        (pb.Constraint(json_schema="{}"), Constraint(ConstraintKind.JSON_SCHEMA, "{}")),
        (pb.Constraint(regex="a+"), Constraint(ConstraintKind.REGEX, "a+")),
        (pb.Constraint(grammar="start: A"), Constraint(ConstraintKind.GRAMMAR, "start: A")),
    ]
    for given, read in expected:
        assert read_generate(message(constraint=given)).constraint == read
    choice = read_generate(message(constraint=pb.Constraint(choice=pb.TextList(values=texts))))
    assert choice.constraint is not None
    assert json.loads(choice.constraint.text) == texts


def test_an_unset_weight_is_one_and_zero_is_zero() -> None:
    shares = [
        inputs_pb2.AdapterShare(adapter="a"),
        inputs_pb2.AdapterShare(adapter="b", weight=0.0),
    ]
    read = read_generate(message(adapters=shares)).adapters
    assert read.composition == (WeightedReference("a", 1.0), WeightedReference("b", 0.0))


def test_a_continuation_without_a_target_is_refused_by_its_place() -> None:
    item = scoring_pb2.ScoreItem(
        prompt="a",
        continuations=[scoring_pb2.Continuation(text="b"), scoring_pb2.Continuation()],
    )
    with pytest.raises(InvalidRequest) as caught:
        read_score(scoring_pb2.ScoreRequest(items=[item]))
    assert caught.value.item == "items[0].continuations[1]"
    with pytest.raises(InvalidRequest) as caught:
        read_score(scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()]))
    assert (caught.value.code, caught.value.item) == ("MISSING_INPUT", "items[0].input")
