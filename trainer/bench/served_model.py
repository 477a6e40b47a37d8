"""A base or an adapter version on a running server, through the public client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from polygraft.client import AsyncClient, Client, ScoreItem
from polygraft.trainer.bench.scored_model import Advance, Facts, Likelihood, TokenPair
from polygraft.trainer.errors import RecipeError

CONCURRENCY = 8
"""Requests in flight."""
CONTINUATIONS = 16
"""Of one Score request; more would only wait inside the server."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def open_served(address: str, reference: str = "") -> ServedModel:
    """The version that `reference` names now ("": the base); a later move of its alias changes
    nothing.

    Raises Unavailable when no server answers, AdapterNotFound naming what there is.
    """
    with Client(address) as client:
        model = client.model()
        version = client.get_adapter(reference).version if reference else None
    if reference and version is None:
        raise RecipeError(f"{reference} names no version to score.", item="--adapter")
    bos = model.eos_token_ids[0] if model.bos_token_id is None else model.bos_token_id
    facts = Facts(
        target=f"grpc://{address}",
        base=model.name,
        weights_sha256=model.weights_sha256,
        adapter=version.digest if version else None,
        has_chat_template=model.has_chat_template,
        weights_bytes=None,
        adapter_bytes=version.size_bytes if version else None,
    )
    virtual = version.virtual_tokens if version else 0
    return ServedModel(address, facts, model.context_length - virtual, bos)


class ServedModel:
    """Sends token ids, so that the border between context and continuation is where lm-eval has it.

    The server puts an adapter's virtual tokens in front of every one of them.
    """

    def __init__(self, address: str, facts: Facts, window: int, bos: int) -> None:
        self._address = address
        self.facts, self.window, self.bos = facts, window, bos

    def encode(self, texts: Sequence[str], *, bare: bool = False) -> list[list[int]]:
        """By the server's tokenizer."""

        async def one(client: AsyncClient, text: str) -> list[int]:
            return list(await client.tokenize(text))

        def trimmed(ids: list[int]) -> list[int]:
            doubled = ids[:2] == [self.bos] * 2
            return ids[1:] if doubled or (bare and ids[:1] == [self.bos]) else ids

        return [trimmed(ids) for ids in self._ask(texts, one, lambda _: None)]

    def score(self, pairs: Sequence[TokenPair], advance: Advance) -> list[Likelihood]:
        """Neighbours of one context travel together and share its computation."""

        async def one(client: AsyncClient, group: Sequence[TokenPair]) -> list[Likelihood]:
            items = [ScoreItem(pair.continuation, token_ids=pair.context) for pair in group]
            scores = await client.score(items, adapter=self._adapter)
            return [Likelihood(score.logprob, score.is_greedy) for score in scores]

        groups = [
            pairs[start : start + CONTINUATIONS] for start in range(0, len(pairs), CONTINUATIONS)
        ]
        answered = self._ask(groups, one, lambda group: advance(len(group)))
        return [likelihood for group in answered for likelihood in group]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_output_tokens: int,
        stop: Sequence[str],
        advance: Advance,
    ) -> list[str]:
        """Greedy."""
        options: dict[str, Any] = {
            "adapter": self._adapter,
            "temperature": 0.0,
            "max_output_tokens": max_output_tokens,
            "stop": tuple(stop),
        }

        async def one(client: AsyncClient, prompt: Sequence[int]) -> str:
            return (await client.generate(token_ids=prompt, **options)).text

        return self._ask(prompts, one, lambda _: advance(1))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The server's template, read back as text. Raises RecipeError where that loses tokens."""
        with Client(self._address) as client:
            ids = client.tokenize(messages=[dict(message) for message in messages])
            text = client.detokenize(ids, skip_special_tokens=False)
        if self.encode([text]) != [list(ids)]:
            raise RecipeError(
                "the server's chat template does not survive being read back as text.",
                item="--chat",
                hint="Use --no-chat, or a local target.",
            )
        return text

    @property
    def _adapter(self) -> str:
        return self.facts.adapter or ""

    def _ask(
        self,
        requests: Sequence[Request],
        one: Callable[[AsyncClient, Request], Awaitable[Answer]],
        done: Callable[[Request], None],
    ) -> list[Answer]:
        """All answers in order. The first error ends all; Unavailable is tried again before."""

        async def run() -> list[Answer]:
            free = asyncio.Semaphore(CONCURRENCY)
            async with AsyncClient(self._address) as client, asyncio.TaskGroup() as group:

                async def limited(request: Request) -> Answer:
                    async with free:
                        answer = await one(client, request)
                    done(request)
                    return answer

                tasks = [group.create_task(limited(request)) for request in requests]
            return [task.result() for task in tasks]

        try:
            return asyncio.run(run())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
