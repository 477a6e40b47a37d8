"""Turn token ids into text as they come: whole characters only, stop strings never shown.

Runs on the event loop, once per step and stream. Knows no engine and no gRPC. One object of each
class serves one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

# A character has at most four bytes, so four tokens after the last whole character complete it,
# or nothing will.
_MAX_HELD_TOKENS = 4

_READ_TOKENS = 64  # of a text that is there already, at a time


class TokenDecoder:
    """The text of token ids without special tokens. One for all answers of a base.

    `special_ids` are the tokens that leave no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder
        marked = {token_id for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(marked.union(tokenizer.all_special_ids))
        self.decode: Callable[[list[int]], str] = _shortest_way(tokenizer)


class IncrementalDetokenizer:
    """Text of a growing token sequence, such that the pieces joined are the text of the whole.

    Decoding token by token is wrong: byte-level tokens hold parts of characters, and SentencePiece
    tokens lose the space in front of them when they come first. So a window is decoded that starts
    with the tokens of the piece before, and only what is new at its end is given out.

    Bytes that never form a character come out as U+FFFD. With byte-fallback tokenizers their number
    may differ from that of one decode of the whole, which judges a run of byte tokens as one.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decode = decoder.decode
        self._special_ids = decoder.special_ids
        self._window: list[int] = []  # the tokens of the last piece, then those not given out
        self._num_context = 0  # how many of the window's tokens are of the last piece
        self._num_shown = 0  # characters of the window's text that were given out

    def fork(self) -> IncrementalDetokenizer:
        """Another one at the same place of the same text."""
        twin = copy(self)
        twin._window = list(self._window)
        return twin

    def read(self, token_ids: Sequence[int]) -> str:
        """`push` for many tokens at once, with a window that stays small."""
        starts = range(0, len(token_ids), _READ_TOKENS)
        return "".join(self.push(token_ids[start : start + _READ_TOKENS]) for start in starts)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; "" while a character is incomplete."""
        tokens = [token for token in token_ids if token not in self._special_ids]
        if len(tokens) > 1 and self._decode(self._window + tokens).endswith(_INCOMPLETE):
            # Why: one by one, or a whole character in the midst of them would be missed.
            return "".join(self._push([token]) for token in tokens)
        return self._push(tokens)

    def _push(self, tokens: list[int]) -> str:
        self._window += tokens
        text = self._decode(self._window)
        is_incomplete = text.endswith(_INCOMPLETE)
        if is_incomplete and len(self._window) - self._num_context <= _MAX_HELD_TOKENS:
            return ""
        piece = text[self._num_shown : len(text) - is_incomplete]
        if piece:
            self._advance(self._incomplete_tokens(text) if is_incomplete else 0)
        return piece

    def flush(self) -> str:
        """What is held back, at the end of the sequence."""
        return self._decode(self._window)[self._num_shown :]

    def _advance(self, num_incomplete: int) -> None:
        """Drop what came before the last piece; the piece just given out is the new context."""
        num_context = len(self._window) - num_incomplete - self._num_context
        self._window = self._window[self._num_context :]
        self._num_context = num_context
        text = self._decode(self._window)
        self._num_shown = len(text) - text.endswith(_INCOMPLETE)

    def _incomplete_tokens(self, text: str) -> int:
        """How many tokens at the end of the window make the incomplete character at its end."""
        for count in range(1, _MAX_HELD_TOKENS):
            head, tail = self._window[:-count], self._window[-count:]
            if self._decode(tail) == _INCOMPLETE and self._decode(head) + _INCOMPLETE == text:
                return count
        return 0


class StopSequenceFilter:
    """Ends a text before the first stop sequence, wherever token borders fall.

    Text that may be the start of a stop sequence is held back until it is known not to be.
    """

    def __init__(self, stop_sequences: Sequence[str]) -> None:
        self._stop_sequences = tuple(stop_sequences)
        self._held = ""
        self.matched: str | None = None  # the stop sequence that was found

    def push(self, text: str) -> str:
        """The part of the text that can be shown; "" once a stop sequence has matched."""
        if not self._stop_sequences:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stop_sequences if (at := text.find(stop)) >= 0]
        if found:
            # Why the one that is complete first: the same whatever the token borders are.
            end, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self._held = ""
            return text[:end]
        num_held = max(_overlap(text, stop) for stop in self._stop_sequences)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _shortest_way(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Why not always tokenizer.decode: it spends ten times as long on types as on decoding."""
    kind, plain = type(tokenizer), PreTrainedTokenizerFast
    if (
        isinstance(tokenizer, plain)
        and kind.decode is plain.decode
        and kind._decode is plain._decode
    ):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    return decode


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that ends `text`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def longest_token_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """No token of the vocabulary stands for more bytes of text than this."""
    return max(len(token.encode()) for token in tokenizer.get_vocab())
