"""lm-eval's view of a model of ours. Borders and windows are those of lm-eval's own `hf` models.

White space at the end of a context belongs to the continuation; both are encoded as one text and
split at the length of the context's own tokens. A token that would grow over the border is scored
with the continuation. What is too long loses its beginning; of a rolling likelihood every token is
scored once, in windows. The only difference: a window has one position less than lm-eval allows,
because a server counts the last token, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from polygraft.trainer.bench.scored_model import Advance, Likelihood, ScoredModel, TokenPair
from polygraft.trainer.errors import DataError, RecipeError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DEFAULT_OUTPUT_TOKENS = 256


class PolygraftLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """`cut` counts the texts that lost their beginning, `tokens` those that went to the model (in
    front of an answer, where it generated), `seconds` the time that it took over them."""

    def __init__(self, model: ScoredModel, advance: Advance = lambda _: None) -> None:
        super().__init__()
        self._model = model
        self._advance = advance
        self.cut = 0
        self.tokens = 0
        self.seconds = 0.0

    @property
    def tokenizer_name(self) -> str:
        """Asked for with chat templates."""
        return self._model.facts.base

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Raises RecipeError where an answer would have to be continued."""
        if not add_generation_prompt:
            raise RecipeError("no answer can be begun for the model.", item="gen_prefix")
        return self._model.render(chat_history)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of each continuation."""
        found = self._score(self._encode_pairs([request.args for request in requests]))
        return [(one.logprob, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log-probability of whole texts after BOS."""
        pairs: list[TokenPair] = []
        owners: list[int] = []
        texts = self._model.encode([request.args[0] for request in requests], bare=True)
        for owner, ids in enumerate(texts):
            windows = get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._model.bos,
                max_seq_len=self._model.window - 1,
                context_len=1,
            )
            for window in windows:
                context, continuation = make_disjoint_window(window)
                pairs.append(TokenPair(tuple(context), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, self._score(pairs), strict=True):
            totals[owner] += one.logprob
        return totals

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy texts, without their stop sequence."""
        wishes: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            wishes.setdefault(_wish(request.args[1]), []).append(index)
        prompts = self._model.encode([request.args[0] for request in requests])
        texts = [""] * len(requests)
        for (length, stop), indices in wishes.items():
            room = self._model.window - length
            if room < 1:
                raise RecipeError(
                    f"the task asks for {length} tokens, and {self._model.window} fit in all.",
                    item="max_gen_toks",
                )
            shown = [self._cut(prompts[index], room) or [self._model.bos] for index in indices]
            self.tokens += sum(map(len, shown))
            started = time.monotonic()
            answers = self._model.generate(
                shown, max_output_tokens=length, stop=stop, advance=self._advance
            )
            self.seconds += time.monotonic() - started
            for index, text in zip(indices, answers, strict=True):
                texts[index] = text
        return texts

    def _encode_pairs(self, texts: Sequence[tuple[str, str]]) -> list[TokenPair]:
        moved = [move_border(context, continuation) for context, continuation in texts]
        known = _Encodings(self._model)
        known.add([context for context, _ in moved if context])
        known.add([context + continuation for context, continuation in moved if context])
        known.add([continuation for context, continuation in moved if not context], bare=True)
        pairs = []
        for context, continuation in moved:
            if context:
                whole = known.of(context + continuation)
                border = min(_common(known.of(context), whole), len(whole) - 1)
            else:
                whole, border = known.of(continuation, bare=True), 0
                if whole[:1] == [self._model.bos]:
                    border = 1  # as in lm-eval: a text that begins with BOS gets no other
            pairs.append(self._fitted(whole[:border], whole[border:], text=continuation))
        return pairs

    def _fitted(self, context: list[int], continuation: list[int], *, text: str) -> TokenPair:
        if not continuation or len(continuation) >= self._model.window:
            raise DataError(
                f"the option {text[:40]!r} has {len(continuation)} tokens; "
                f"1 to {self._model.window - 1} can be scored."
            )
        context = context or [self._model.bos]
        kept = self._cut(context, self._model.window - len(continuation))
        return TokenPair(tuple(kept), tuple(continuation))

    def _cut(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        self.cut += 1
        return ids[-room:]

    def _score(self, pairs: Sequence[TokenPair]) -> list[Likelihood]:
        self.tokens += sum(len(pair.context) + len(pair.continuation) for pair in pairs)
        started = time.monotonic()
        found = self._model.score(pairs, self._advance)
        self.seconds += time.monotonic() - started
        return found


class _Encodings:
    """Each distinct text encoded once, all of them in one call."""

    def __init__(self, model: ScoredModel) -> None:
        self._model = model
        self._ids: dict[tuple[str, bool], list[int]] = {}

    def add(self, texts: Sequence[str], *, bare: bool = False) -> None:
        new = [text for text in dict.fromkeys(texts) if (text, bare) not in self._ids]
        for text, ids in zip(new, self._model.encode(new, bare=bare), strict=True):
            self._ids[text, bare] = ids

    def of(self, text: str, *, bare: bool = False) -> list[int]:
        return self._ids[text, bare]


def move_border(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of the context goes to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _wish(options: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """(most output tokens, stop sequences). Raises RecipeError for a task that samples."""
    if options.get("do_sample"):
        raise RecipeError("the task samples, and answers here are greedy.", item="do_sample")
    stop = options.get("until") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(text for text in stop if text)
    return int(options.get("max_gen_toks", DEFAULT_OUTPUT_TOKENS)), stop
