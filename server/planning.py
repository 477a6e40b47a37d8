"""From an encoded request to what the engine runs: defaults, recipe, stop tokens, seeds."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.prompt import PromptRecipe
from polygraft.server.applied import AppliedAdapters
from polygraft.server.encoding import EncodedContinuation, EncodedPrompt
from polygraft.server.engine.constraint import CompiledConstraint
from polygraft.server.engine.messages import EngineRequest, Sampling, Stopping
from polygraft.server.requests import (
    GenerateRequest,
    Priority,
    SamplingOptions,
    StoppingOptions,
)

DEFAULT_MAX_OUTPUT_TOKENS = 256
_SEED_BITS = 53  # a drawn seed survives a JSON number


@dataclass(frozen=True, slots=True)
class Caller:
    """What of the call itself the engine must know. Times are on the monotonic clock."""

    request_id: str
    arrived_at: float
    deadline: float | None = None


class Planner:
    """Fills in what a request left open. The recipe counts for inputs of variables only."""

    def __init__(self, *, eos_token_ids: frozenset[int], context_length: int) -> None:
        self._eos_token_ids = eos_token_ids
        self._context_length = context_length

    def plan_generation(
        self,
        request: GenerateRequest,
        prompt: EncodedPrompt,
        adapters: AppliedAdapters,
        caller: Caller,
        constraint: CompiledConstraint | None = None,
    ) -> list[EngineRequest]:
        """One engine request for each choice. Raises InvalidRequest."""
        sampling = _sampling(request.sampling, prompt.recipe)
        first = EngineRequest(
            request_id=f"{caller.request_id}.0",
            prompt_token_ids=prompt.token_ids,
            stopping=self._stopping(request.stopping, prompt, adapters, caller.arrived_at),
            sampling=sampling,
            adapters=adapters.shares,
            num_virtual=adapters.num_virtual_tokens,
            num_prefix=adapters.num_prefix_tokens,
            salt=adapters.salt,
            top_logprobs=request.output.top_logprobs,
            prompt_logprobs=request.output.prompt_logprobs,
            constraint=constraint,
            speculation=request.speculation,
            share=adapters.fair_share,
            priority=request.priority.value,
            deadline=caller.deadline,
        )
        others = (
            replace(
                first,
                request_id=f"{caller.request_id}.{index}",
                sampling=replace(sampling, seed=(sampling.seed + index) % (1 << _SEED_BITS)),
                prompt_logprobs=None,
                after=first.request_id,
            )
            for index in range(1, request.sampling.n or 1)
        )
        return [first, *others]

    def plan_scoring(
        self,
        items: Sequence[Sequence[EncodedContinuation]],
        adapters: AppliedAdapters,
        caller: Caller,
        priority: Priority,
    ) -> list[list[EngineRequest]]:
        """One engine request for each continuation of each item; the first of an item computes the
        context for the others. Raises InvalidRequest for one that is empty or too long.
        """
        shared = EngineRequest(
            request_id=caller.request_id,
            prompt_token_ids=(),
            stopping=Stopping(max_output_tokens=0),
            adapters=adapters.shares,
            num_virtual=adapters.num_virtual_tokens,
            num_prefix=adapters.num_prefix_tokens,
            salt=adapters.salt,
            share=adapters.fair_share,
            priority=priority.value,
            deadline=caller.deadline,
        )
        return [
            [
                self._score_job(shared, item, index, encoded)
                for index, encoded in enumerate(continuations)
            ]
            for item, continuations in enumerate(items)
        ]

    def _score_job(
        self, shared: EngineRequest, item: int, index: int, encoded: EncodedContinuation
    ) -> EngineRequest:
        """The job of `items[item].continuations[index]`."""
        place = f"items[{item}].continuations[{index}]"
        num_tokens = shared.num_virtual + len(encoded.token_ids)
        if not 0 < encoded.score_from < len(encoded.token_ids):
            what = "context" if encoded.score_from == 0 else "continuation"
            raise InvalidRequest(
                f"the {what} has no tokens; scoring needs at least one before and one to score.",
                reason="EMPTY_PROMPT",
                item=place,
            )
        if num_tokens > self._context_length:
            raise InvalidRequest(
                f"context and continuation make {num_tokens} tokens, more than the context of "
                f"{self._context_length}.",
                reason="PROMPT_TOO_LONG",
                item=place,
                found=num_tokens,
                allowed=self._context_length,
                hint="Shorten it.",
            )
        return replace(
            shared,
            request_id=f"{shared.request_id}.{item}.{index}",
            prompt_token_ids=encoded.token_ids,
            score_from=encoded.score_from,
            after=f"{shared.request_id}.{item}.0" if index else None,
        )

    def _stopping(
        self,
        stopping: StoppingOptions,
        prompt: EncodedPrompt,
        adapters: AppliedAdapters,
        arrived_at: float,
    ) -> Stopping:
        stop_ids = set(stopping.stop_token_ids)
        stop_ids.update(prompt.recipe.stop_token_ids if prompt.recipe else ())
        if not stopping.ignore_eos:
            stop_ids |= self._eos_token_ids
        time_limit = stopping.time_limit
        if time_limit is not None:
            time_limit = max(0.0, arrived_at + time_limit - time.monotonic())
        most = self._max_output_tokens(stopping, prompt, adapters.num_virtual_tokens)
        least = stopping.min_output_tokens or 0
        if least > most:
            raise InvalidRequest(
                f"{least} output tokens at least and {most} at most contradict each other.",
                item="stopping.min_output_tokens",
                found=least,
                allowed=f"0 to {most}",
            )
        return Stopping(most, frozenset(stop_ids), time_limit, least)

    def _max_output_tokens(
        self, stopping: StoppingOptions, prompt: EncodedPrompt, num_virtual: int
    ) -> int:
        """What was asked for; else the recipe's or the server's default, as far as it fits."""
        if stopping.max_output_tokens is not None:
            return stopping.max_output_tokens
        default = prompt.recipe.defaults.max_output_tokens if prompt.recipe else None
        wanted = DEFAULT_MAX_OUTPUT_TOKENS if default is None else int(default)
        # At least one, so that the engine refuses a prompt that leaves no room.
        return max(1, min(wanted, self._context_length - num_virtual - len(prompt.token_ids)))


def stop_sequences(stopping: StoppingOptions, recipe: PromptRecipe | None) -> tuple[str, ...]:
    """The request's own, then the recipe's."""
    return stopping.stop_sequences + (recipe.stop_sequences if recipe else ())


def _sampling(options: SamplingOptions, recipe: PromptRecipe | None) -> Sampling:
    """What was given; for the rest the recipe's temperature and the engine's defaults."""
    given = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
    }
    if options.temperature is None and recipe is not None and recipe.defaults.temperature:
        given["temperature"] = float(recipe.defaults.temperature)
    return Sampling(
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        logit_bias=tuple(sorted(options.logit_bias.items())),
        seed=secrets.randbits(_SEED_BITS) if options.seed is None else options.seed,
    )
