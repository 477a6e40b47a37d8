"""Values that depend on a module's name: PEFT's rank_pattern and alpha_pattern.

The patterns come from uploaded files, so only those whose matching time is bounded are run:
Python's `re` holds the interpreter lock and cannot be interrupted.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.files import CONFIG_FILE

MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 256
MAX_QUANTIFIERS = 3
MAX_ALTERNATIVES = 256  # the product over all groups
MATCH_SECONDS = 2.0  # for all modules of one adapter together
# Python warns that these may get another meaning inside a set.
NESTED_SET = re.compile(r"\[[^\]]*(\[|--|&&|~~|\|\|)")
ESCAPED = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)


class PatternMap:
    """The values that patterns give to a module's name; the default without a match.

    Matching is PEFT's (`get_pattern_key`): the pattern must match the whole name or everything
    after one of its dots. PEFT takes the first match of the dictionary it trains with, but sorts
    the keys when it saves: with several matches the file no longer tells which one was used.
    """

    def __init__(self, item: str, patterns: Mapping[str, float], default: float) -> None:
        self._item = item
        self._default = default
        self._seconds = 0.0
        if len(patterns) > MAX_PATTERNS:
            raise self._refused(f"{len(patterns)} patterns are too many", MAX_PATTERNS)
        self._patterns = [(self._compile(key), value) for key, value in patterns.items()]

    def values(self, module: str) -> tuple[float, ...]:
        """The distinct values of all patterns that match, at least one.

        Raises AdapterInvalid when matching takes too long.
        """
        if not self._patterns:
            return (self._default,)
        started = time.thread_time()
        found = dict.fromkeys(v for pattern, v in self._patterns if pattern.match(module))
        self._seconds += time.thread_time() - started
        if self._seconds > MATCH_SECONDS:
            raise self._refused("the patterns take too long to match", f"{MATCH_SECONDS} s")
        return tuple(found) or (self._default,)

    def _compile(self, key: str) -> re.Pattern[str]:
        bare = ESCAPED.sub("x", key)
        quantifiers = sum(bare.count(mark) for mark in "*+?{")
        # Why: a quantified group, a look-around or a back-reference can take exponential time;
        # k quantifiers on single characters take at most the k-th power of a name's length, and
        # alternations in a row multiply the ways to try.
        ways = math.prod(1 + part.count("|") for part in bare.split("("))
        too_many = quantifiers > MAX_QUANTIFIERS or ways > MAX_ALTERNATIVES
        if len(key) > MAX_PATTERN_LENGTH or too_many:
            raise self._refused(f"the pattern {key[:80]!r} is too complex", self._limits())
        if re.search(r"\)[*+?{]|\(\?", bare) or re.search(r"\\[1-9]", key):
            raise self._refused(f"the pattern {key[:80]!r} repeats a group", self._limits())
        if NESTED_SET.search(key):
            raise self._refused(f"the pattern {key[:80]!r} nests sets", self._limits())
        try:
            return re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise self._refused(f"{key[:80]!r} is no regular expression ({error})") from error

    @staticmethod
    def _limits() -> str:
        return (
            f"{MAX_PATTERN_LENGTH} characters, {MAX_QUANTIFIERS} of * + ? {{}}, none on a group, "
            f"{MAX_ALTERNATIVES} alternatives"
        )

    def _refused(self, what: str, allowed: object = None) -> AdapterInvalid:
        return AdapterInvalid(
            f"{what} (allowed: {allowed})." if allowed else f"{what}.",
            file=CONFIG_FILE,
            item=self._item,
            allowed=allowed,
            hint="Write module names instead of general expressions.",
        )
