"""Splits between two versions: how many, who, and who stays when the weight grows."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polygraft.adapters.alias_records import (
    AliasMove,
    AliasRecord,
    Target,
    bucket_of,
    candidate_of,
    check_targets,
    decode_move,
    encode_move,
    salt_after,
)
from polygraft.adapters.errors import AdapterCorrupt, InvalidRequest

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def record(*targets: Target, salt: str = "s", generation: int = 1) -> AliasRecord:
    return AliasRecord("sum", "live", targets, generation, 0.0, "", salt=salt)


def split(weight: int, salt: str = "s") -> AliasRecord:
    return record(Target(A, 1, 10_000 - weight), Target(B, 2, weight), salt=salt)


def test_buckets_are_those_of_the_design() -> None:
    digest = hashlib.sha256(b"0011user-7").digest()
    assert bucket_of("0011", "user-7") == int.from_bytes(digest[:8], "big") % 10_000


def test_shares_are_the_weights() -> None:
    keys = [f"user-{n}" for n in range(20_000)]
    for weight in (500, 2000, 5000):
        chosen = sum(split(weight).target_for(key).digest == B for key in keys)
        # Three standard deviations of a binomial share.
        share = weight / 10_000
        assert abs(chosen / len(keys) - share) < 3 * (share * (1 - share) / len(keys)) ** 0.5


@given(st.text(max_size=20), st.integers(1, 9998), st.integers(1, 9999))
def test_whoever_has_the_canary_keeps_it_while_its_weight_grows(
    key: str, weight: int, growth: int
) -> None:
    larger = min(9999, weight + growth)
    if split(weight).target_for(key).digest == B:
        assert split(larger).target_for(key).digest == B


def test_without_a_key_the_version_in_charge_answers() -> None:
    assert split(9999).target_for(None).digest == A


def test_the_salt_stays_while_weights_change_and_is_new_with_a_version() -> None:
    grown = (Target(A, 1, 8000), Target(B, 2, 2000))
    assert salt_after(split(500), grown) == "s"
    assert salt_after(split(500), (Target(A, 1),)) == "s"
    fresh = salt_after(split(500), (Target(A, 1, 9500), Target(C, 3, 500)))
    assert fresh not in ("s", salt_after(None, grown))
    first_to_b = {k for k in map(str, range(2000)) if split(500).target_for(k).digest == B}
    first_to_c = {k for k in map(str, range(2000)) if split(500, fresh).target_for(k).digest == B}
    assert first_to_b != first_to_c


@pytest.mark.parametrize(
    "targets",
    [
        (),
        (Target(A, 1, 9999),),
        (Target(A, 1, 10_000), Target(B, 2, 0)),
        (Target(A, 1, 5000), Target(B, 2, 5001)),
        (Target(A, 1, 5000), Target(A, 1, 5000)),
        (Target(A, 1, 5000), Target(B, 2, 2500), Target(C, 3, 2500)),
        (Target(A, 1, 10_001), Target(B, 2, -1)),
    ],
)
def test_targets_that_are_no_split_are_refused(targets: tuple[Target, ...]) -> None:
    with pytest.raises(InvalidRequest, match="10000"):
        check_targets(targets)


def test_the_candidate_is_who_gets_more_than_before() -> None:
    one = record(Target(A, 1))
    assert candidate_of(None, (Target(A, 1),)) == Target(A, 1)
    assert candidate_of(one, (Target(B, 2),)) == Target(B, 2)
    assert candidate_of(one, (Target(A, 1),)) is None
    assert candidate_of(split(500), (Target(A, 1),)) is None
    grown = Target(B, 2, 600)
    assert candidate_of(split(500), (Target(A, 1, 9400), grown)) == grown
    assert candidate_of(split(500), (Target(A, 1, 9600), Target(B, 2, 400))) is None
    with pytest.raises(InvalidRequest, match="2 and 3 are both new"):
        candidate_of(one, (Target(B, 2, 5000), Target(C, 3, 5000)))


def test_records_of_older_servers_are_read() -> None:
    entry = {"targets": [{"version": A, "number": 4, "weight": 10_000}], "reason": "r", "at": 1.5}
    read = decode_move("sum", "live", 3, entry)
    assert (read.digest, read.number, read.canary, read.salt) == (A, 4, None, "")
    assert read.target_for("anybody").digest == A


def test_a_move_is_read_as_it_was_written() -> None:
    move = AliasMove(split(500).targets, reason="try", by="me", restored=2, is_forced=True)
    entry = encode_move(move, None, 6) | {"at": 9.0}
    read = decode_move("sum", "live", 7, entry)
    assert (read.targets, read.reason, read.moved_by) == (move.targets, "try", "me")
    assert (read.restored, read.is_forced, read.generation) == (2, True, 7)
    with pytest.raises(AdapterCorrupt):
        decode_move("sum", "live", 7, {"targets": [{"number": 1}], "at": 0, "reason": ""})
