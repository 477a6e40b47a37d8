"""The oracle is one decode of the whole sequence; pieces joined must equal it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from server_support.tokenizers import MAKERS, TEXTS, byte_fallback, byte_level
from transformers import PreTrainedTokenizerFast

from polygraft.server.text import (
    IncrementalDetokenizer,
    StopSequenceFilter,
    TokenDecoder,
)


def whole(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int], step: int = 1) -> list[str]:
    detokenizer = IncrementalDetokenizer(TokenDecoder(tokenizer))
    shown = [detokenizer.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*shown, detokenizer.flush()]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("make", MAKERS)
def test_pieces_joined_are_the_text_of_the_whole(
    make: Callable[[], PreTrainedTokenizerFast], step: int
) -> None:
    tokenizer = make()
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        shown = pieces(tokenizer, ids, step)
        assert "".join(shown) == whole(tokenizer, ids)
        if "\ufffd" not in whole(tokenizer, ids):
            assert "\ufffd" not in "".join(shown), "half a character was shown"


@pytest.mark.parametrize("make", MAKERS)
def test_special_tokens_leave_no_trace_and_keep_the_spaces_around_them(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    special = tokenizer.convert_tokens_to_ids("<sp>")
    assert isinstance(special, int)
    draw = random.Random(0)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        mixed = [special]
        for token in ids:
            mixed += [token] + [special] * draw.choice([0, 0, 1, 40])
        # Between the bytes of one character a special token splits it, in the oracle too.
        if "\ufffd" not in whole(tokenizer, mixed):
            assert "".join(pieces(tokenizer, mixed)) == whole(tokenizer, mixed)


def test_any_byte_soup_of_a_byte_level_tokenizer_matches_the_whole() -> None:
    tokenizer = byte_level()
    draw = random.Random(1)
    for _ in range(200):
        ids = [draw.randrange(256) for _ in range(draw.randrange(1, 60))]
        assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids)


def test_byte_soup_of_a_byte_fallback_tokenizer_is_shown_without_delay() -> None:
    tokenizer = byte_fallback()
    draw = random.Random(2)
    for _ in range(200):
        ids = [draw.randrange(1, 257) for _ in range(40)]
        detokenizer = IncrementalDetokenizer(TokenDecoder(tokenizer))
        for token in ids:
            detokenizer.push([token])
            assert len(detokenizer._window) <= 12, "the window must not grow with the answer"
        detokenizer.flush()


@pytest.mark.parametrize("make", MAKERS)
def test_the_window_stays_small(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    special = tokenizer.convert_tokens_to_ids("<sp>")
    detokenizer = IncrementalDetokenizer(TokenDecoder(tokenizer))
    for token in [special] * 100 + tokenizer.encode(" ".join(TEXTS)) + [special] * 100:
        detokenizer.push([token])
        assert len(detokenizer._window) <= 12


class ShoutingTokenizer(PreTrainedTokenizerFast):
    """A tokenizer of the kind that changes what it decodes."""

    def _decode(self, *arguments: Any, **options: Any) -> str:
        return super()._decode(*arguments, **options).upper()


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked_itself() -> None:
    tokenizer = ShoutingTokenizer(tokenizer_object=byte_level().backend_tokenizer)  # type: ignore[no-untyped-call]
    ids = tokenizer.encode("hello wörld", add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids) == "HELLO WÖRLD"


def stop_at(stops: list[str], text: str, step: int) -> tuple[str, str | None]:
    stop_filter = StopSequenceFilter(stops)
    shown = ""
    for i in range(0, len(text), step):
        shown += stop_filter.push(text[i : i + step])
        for stop in stops:
            assert stop not in shown
    return shown + stop_filter.flush(), stop_filter.matched


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo", "\n\n"),
        (["STOP"], "no stop: STO", "no stop: STO", None),
        (["aab"], "aaaab!", "aa", "aab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["END", "E"], "the END", "the ", "E"),
        (["r", "w\u00f6r"], "Hello w\u00f6rld", "Hello ", "w\u00f6r"),
        (["é😀"], "café😀!", "caf", "é😀"),
        ([], "anything", "anything", None),
        (["x"], "x", "", "x"),
    ],
)
def test_a_stop_sequence_is_found_across_pieces_and_never_shown(
    stops: list[str], text: str, shown: str, matched: str | None, step: int
) -> None:
    assert stop_at(stops, text, step) == (shown, matched)


def test_nothing_is_shown_after_a_match() -> None:
    stop_filter = StopSequenceFilter(["."])
    assert stop_filter.push("a.b") == "a"
    assert stop_filter.push("c") == ""
    assert stop_filter.flush() == ""
