"""How long a prompt can get, before it is tokenised: no token is shorter than a byte."""

from __future__ import annotations

from polygraft.server.requests import Continuation, Input, Messages, Prompt, ScoreItem, TokenIds


def input_size(value: Input) -> int:
    """Bytes of UTF-8 of a text, or the number of tokens. A template or recipe may add to it."""
    match value:
        case Prompt(text):
            return len(text.encode())
        case TokenIds(token_ids):
            return len(token_ids)
        case Messages(messages):
            return sum(len(text.encode()) for message in messages for text in message.values())
    return sum(len(text.encode()) for text in value.values.values())


def item_sizes(item: ScoreItem) -> list[int]:
    """The same of the context with each of its continuations."""
    context = input_size(item.context)
    return [context + _continuation_size(continuation) for continuation in item.continuations]


def _continuation_size(continuation: Continuation) -> int:
    return len(continuation.encode() if isinstance(continuation, str) else continuation)
