"""Patterns match as PEFT's do, and none can take the server's time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.patterns import PatternMap

NAMES = st.sampled_from(
    [
        "q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.11.mlp.down_proj",
        "transformer.h.0",
    ]
)
PATTERNS = st.sampled_from(
    ["q_proj", "proj", "self_attn.q_proj", r"layers\.1\..*", "^model.*proj", "h.0", r"[qk]_proj",
     r"layers.\d+.mlp.down_proj", "q_proj|down_proj", "(q|k)_proj", ".*"]
)  # fmt: skip


@settings(deadline=None)
@given(NAMES, PATTERNS)
def test_one_pattern_matches_exactly_when_peft_matches_it(name: str, pattern: str) -> None:
    matches = get_pattern_key([pattern], name) == pattern
    assert PatternMap("rank_pattern", {pattern: 5}, 1).values(name) == ((5,) if matches else (1,))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)*b", r"(a)\1", "(?=a)b", "(?P<n>a)", ".*.*.*.*x", "a{2}b{2}c{2}d{2}",
     "(", "[", "*", "a" * 300, "(x){2,}", "[[a]]", "[a--b]"],
)  # fmt: skip
def test_patterns_that_could_run_for_ever_or_are_broken_are_refused(pattern: str) -> None:
    with pytest.raises(AdapterInvalid, match="rank_pattern"):
        PatternMap("rank_pattern", {pattern: 5}, 1)


@settings(deadline=None)
@given(st.text(alphabet="ab.*+{}()[]|\\?^$2,", max_size=12))
def test_no_accepted_pattern_is_slow(pattern: str) -> None:
    try:
        patterns = PatternMap("rank_pattern", {pattern: 5}, 1)
    except AdapterInvalid:
        return
    started = time.perf_counter()
    patterns.values("ab.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 2)
    assert time.perf_counter() - started < 2.0


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(AdapterInvalid, match="too many"):
        PatternMap("alpha_pattern", {f"m{i}": 1 for i in range(5000)}, 1)


@pytest.mark.parametrize(
    "pattern", [".?" * 60 + "Z", "(a|b)" * 12 + "Z", "(.|[a-z])" * 20, "(a?)?" * 4], ids=str
)
def test_patterns_whose_ways_multiply_are_refused(pattern: str) -> None:
    with pytest.raises(AdapterInvalid, match=r"complex|repeats"):
        PatternMap("rank_pattern", {pattern: 8}, 4)


def test_a_list_of_layers_in_one_group_is_fine() -> None:
    layers = "|".join(str(i) for i in range(80))
    patterns = PatternMap("rank_pattern", {rf"layers\.({layers})\.q_proj": 8}, 4)
    assert patterns.values("model.layers.79.q_proj") == (8,)
