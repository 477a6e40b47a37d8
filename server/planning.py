"""From an encoded request to what the engine runs: defaults, recipe, stop tokens, seed."""

from __future__ import annotations

import secrets
import time

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.prompt import PromptRecipe
from polygraft.adapters.registry import VersionRecord
from polygraft.server.encoding import EncodedItem, EncodedPrompt
from polygraft.server.engine.messages import AdapterShare, EngineRequest, Sampling, Stopping
from polygraft.server.requests import GenerateRequest, SamplingOptions, StoppingOptions

DEFAULT_MAX_OUTPUT_TOKENS = 256
_SEED_BITS = 53  # a drawn seed survives a JSON number


class Planner:
    """Fills in what a request left open. The recipe counts for inputs of variables only."""

    def __init__(self, *, eos_token_ids: frozenset[int], context_length: int) -> None:
        self._eos_token_ids = eos_token_ids
        self._context_length = context_length

    def plan_generation(
        self,
        request: GenerateRequest,
        prompt: EncodedPrompt,
        version: VersionRecord | None,
        *,
        request_id: str,
        arrived_at: float,
    ) -> EngineRequest:
        """`arrived_at` on the monotonic clock; the time limit counts from it."""
        stopping, recipe = request.stopping, prompt.recipe
        stop_ids = set(stopping.stop_token_ids).union(recipe.stop_token_ids if recipe else ())
        if not stopping.ignore_eos:
            stop_ids |= self._eos_token_ids
        time_limit = stopping.time_limit
        if time_limit is not None:
            time_limit = max(0.0, arrived_at + time_limit - time.monotonic())
        num_virtual = _num_virtual_tokens(version)
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            stopping=Stopping(
                max_output_tokens=self._max_output_tokens(stopping, prompt, num_virtual),
                stop_token_ids=frozenset(stop_ids),
                time_limit=time_limit,
            ),
            sampling=_sampling(request.sampling, recipe),
            adapters=_adapters(version),
            num_virtual=num_virtual,
            num_prefix=_num_prefix_tokens(version),
            top_logprobs=0 if request.logprobs else None,
        )

    def plan_scoring(
        self, items: list[EncodedItem], version: VersionRecord | None, *, request_id: str
    ) -> list[EngineRequest]:
        """One engine request per item. Raises InvalidRequest for an empty side of an item."""
        return [
            EngineRequest(
                request_id=f"{request_id}.{index}",
                prompt_token_ids=item.token_ids,
                stopping=Stopping(max_output_tokens=0),
                adapters=_adapters(version),
                num_virtual=_num_virtual_tokens(version),
                num_prefix=_num_prefix_tokens(version),
                score_from=_checked_start(index, item),
            )
            for index, item in enumerate(items)
        ]

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


def _adapters(version: VersionRecord | None) -> tuple[AdapterShare, ...]:
    return (AdapterShare(version.digest),) if version else ()


def _num_virtual_tokens(version: VersionRecord | None) -> int:
    return version.manifest.format.virtual_token_count if version else 0


def _num_prefix_tokens(version: VersionRecord | None) -> int:
    is_prefix = version is not None and version.manifest.kind == "prefix"
    return _num_virtual_tokens(version) if is_prefix else 0


def _sampling(options: SamplingOptions, recipe: PromptRecipe | None) -> Sampling:
    temperature = options.temperature
    if temperature is None and recipe is not None and recipe.defaults.temperature is not None:
        temperature = float(recipe.defaults.temperature)
    return Sampling(
        temperature=temperature or 0.0,
        top_p=1.0 if options.top_p is None else options.top_p,
        top_k=options.top_k or 0,
        seed=secrets.randbits(_SEED_BITS) if options.seed is None else options.seed,
    )


def _checked_start(index: int, item: EncodedItem) -> int:
    if not 0 < item.score_from < len(item.token_ids):
        what = "context" if item.score_from == 0 else "continuation"
        raise InvalidRequest(
            f"the {what} has no tokens; scoring needs at least one before and one to score.",
            reason="EMPTY_PROMPT",
            item=f"items[{index}]",
        )
    return item.score_from
