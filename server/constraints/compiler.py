"""Compiles constraints off the event loop and off the engine's thread, and keeps the last ones."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase

from polygraft.adapters.errors import InvalidRequest, Overloaded
from polygraft.server.constraints.matchers import make_matcher, make_tokenizer
from polygraft.server.constraints.matching import CompiledMatcher
from polygraft.server.constraints.trial import Trial
from polygraft.server.engine.constraint import Constraint

_MAX_MESSAGE = 300  # characters of llguidance's
_MAX_CHECKED_TOKENS = 4096


class ConstraintCompiler:
    """One for a base. `compile` belongs to the event loop; `close` ends what it started."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        max_kept: int = 128,
        max_waiting: int = 64,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._max_kept = max_kept
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._lock = threading.Lock()  # guards the next one
        self._kept: OrderedDict[Constraint, CompiledMatcher | str] = OrderedDict()
        # One thread: it owns the trial process, and many constraints at once must not take many
        # cores from the engine.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._llg: LLTokenizer | None = None
        self._trial: Trial | None = None

    async def compile(self, constraint: Constraint) -> CompiledMatcher:
        """The constraint, checked and ready.

        Raises InvalidRequest: INVALID_CONSTRAINT says what is wrong with it, UNSUPPORTED_OPTION
        that this base's tokenizer cannot be constrained. Raises Overloaded when `max_waiting`
        others wait for the one thread.
        """
        found = self._find(constraint)
        if found is None:
            found = await self._in_worker(constraint)
        if isinstance(found, str):
            raise InvalidRequest(
                f"the constraint cannot be used: {found[:_MAX_MESSAGE]}.",
                reason="INVALID_CONSTRAINT",
                item=f"constraint.{constraint.kind.value}",
                hint="See docs/api.md for what is supported.",
            )
        return found

    async def _in_worker(self, constraint: Constraint) -> CompiledMatcher | str:
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._num_waiting} constraints wait to be compiled, the limit of this server.",
                allowed=self._max_waiting,
                hint="Retry later.",
            )
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._compile, constraint)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """End the thread and the process. Idempotent."""
        trial = self._trial
        if trial is not None:
            trial.interrupt()
        self._worker.shutdown(wait=True, cancel_futures=True)
        if trial is not None:
            trial.close()

    def _find(self, constraint: Constraint) -> CompiledMatcher | str | None:
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
            return self._kept.get(constraint)

    def _keep(self, constraint: Constraint, found: CompiledMatcher | str) -> None:
        with self._lock:
            self._kept[constraint] = found
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)

    def _compile(self, constraint: Constraint) -> CompiledMatcher | str:
        """In the worker's thread; a refusal is its reason."""
        found = self._find(constraint)  # it may have been compiled while this call waited
        if found is None:
            found = self._compile_anew(constraint)
            self._keep(constraint, found)
        return found

    def _compile_anew(self, constraint: Constraint) -> CompiledMatcher | str:
        tokenizer, trial = self._open()
        kind, text = constraint.kind.value, constraint.text
        problem = trial.problem(kind, text)
        if problem:
            return problem
        matcher = make_matcher(tokenizer, kind, text)
        return CompiledMatcher(matcher, self._vocab_size, tokenizer.eos_tokens)

    def _open(self) -> tuple[LLTokenizer, Trial]:
        if self._llg is None or self._trial is None:
            description = _description(self._tokenizer)
            try:
                llg = make_tokenizer(description, self._vocab_size, self._eos_token_ids)
            except ValueError as error:
                raise _unsupported(self._tokenizer, str(error)) from error
            _check_tokens(self._tokenizer, llg)
            self._llg = llg
            self._trial = Trial(description, self._vocab_size, llg.eos_tokens)
        return self._llg, self._trial


def _description(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise _unsupported(tokenizer, "it is not a fast tokenizer")
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def _check_tokens(tokenizer: PreTrainedTokenizerBase, llg: LLTokenizer) -> None:
    """Refuse a tokenizer whose tokens llguidance reads as other text than they give.

    Each token is decoded behind another, because the first one may lose its space.
    """
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor)
    step = -(-len(tokenizer) // _MAX_CHECKED_TOKENS)
    for token in range(0, len(tokenizer), step):
        try:
            text = llg.decode_bytes([token]).decode()
        except UnicodeDecodeError:
            continue  # part of a character
        # The byte 0xFF, which no text has, reads as nothing.
        if not text or token in tokenizer.added_tokens_decoder:
            continue
        after = tokenizer.decode([*anchor, token], clean_up_tokenization_spaces=False)
        if after != f"{before}{text}":
            raise _unsupported(tokenizer, f"its token {token} reads {text!r}, but gives {after!r}")


def _unsupported(tokenizer: PreTrainedTokenizerBase, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"this base's tokenizer, {type(tokenizer).__name__}, cannot be constrained: {why}.",
        reason="UNSUPPORTED_OPTION",
        item="constraint",
        hint="Leave the constraint out, or serve another base.",
    )
