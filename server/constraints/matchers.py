"""From the texts of constraints to llguidance matchers, within limits; also a program to try them.

Some texts keep llguidance busy for minutes, and a thread cannot be ended. So every text is first
compiled by this file run as a program, in a process that is ended after `MAX_SECONDS` of computing;
only one that passed is compiled in the server. That is why nothing of polygraft is imported here.

The program reads lines of JSON: first `{"tokenizer", "vocab_size", "eos_token_ids"}`, then one
`{"kind", "text"}` after the other; it answers each with `{"problem"}`, "" if there is none.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_SECONDS = 2.0
"""CPU time for compiling one text and computing its first mask."""

_MAX_ADDRESS_SPACE = 4 << 30  # bytes of the trial process
_STACK_BYTES = 1 << 20  # less than the server's threads have: what fits here fits there

_NUM_TRIED = 8  # tokens that are followed, because some texts grow beyond bounds with the first

# A mask is computed between two tokens of everybody: the limits of a step keep it below some tens
# of milliseconds however the text was meant. What passes them ends its own sequence.
_LIMITS = LLParserLimits(step_lexer_fuel=100_000, step_max_items=20_000, verbose_errors=False)

# Why not any amount of whitespace: a model that has lost its way would write nothing else.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


def make_tokenizer(description: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """`description` is what tokenizers' `to_str` gives. Raises ValueError."""
    parsed = json.loads(description)
    parsed["decoder"] = _readable(parsed.get("decoder"))
    return LLTokenizer(
        json.dumps(parsed), n_vocab=vocab_size, eos_token=list(eos_token_ids) or None
    )


def make_matcher(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """A matcher at its start, its first mask computed. Raises ValueError that says what is wrong.

    kind: a value of `ConstraintKind`.
    """
    matcher = LLMatcher(tokenizer, _grammar(kind, text), log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(_one_line(matcher.get_error()))
    return matcher


def _grammar(kind: str, text: str) -> str:
    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(
                _read_schema(text), defaults={"whitespace_pattern": _WHITESPACE}
            )
        case "regex":
            return LLMatcher.grammar_from_regex(text)
        case "grammar":
            return LLMatcher.grammar_from_lark(text)
        case "choice":
            texts = [json.dumps(choice) for choice in json.loads(text)]
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    raise ValueError(f"{kind!r} is no kind of constraint")


def _read_schema(text: str) -> str:
    """The text of a schema that is an object: llguidance applies options to such only."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if schema is False:
        raise ValueError("no value satisfies the schema false")
    if schema is not True and not isinstance(schema, dict):
        raise ValueError("a schema is an object, true or false")
    return "{}" if schema is True else text


def _readable(decoder: dict[str, object] | None) -> dict[str, object] | None:
    """A decoder that llguidance reads: it knows those of byte tokens, but not Metaspace."""
    if decoder is None or "Metaspace" not in json.dumps(decoder):
        return decoder
    spaces = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def _one_line(message: str) -> str:
    """The message without llguidance's notes for its own developers."""
    lines = (line.strip() for line in message.splitlines())
    return " ".join(line for line in lines if line and line != "<non-verbose/>")


def _answer(line: str, tokenizer: LLTokenizer) -> str:
    question = json.loads(line)
    try:
        matcher = make_matcher(tokenizer, question["kind"], question["text"])
    except ValueError as error:
        return str(error)
    for _ in range(_NUM_TRIED):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        if not allowed or matcher.is_stopped():
            break
        lowest = (allowed & -allowed).bit_length() - 1
        matcher.consume_token(lowest)
    return _one_line(matcher.get_error())


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    first = json.loads(sys.stdin.readline())
    tokenizer = make_tokenizer(first["tokenizer"], first["vocab_size"], first["eos_token_ids"])
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # SIGPROF ends the process
        problem = _answer(line, tokenizer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"problem": problem}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process
    threading.stack_size(_STACK_BYTES)
    worker = threading.Thread(target=_main)
    worker.start()
    worker.join()
