"""Answers rows through a running server, for scoring what is really served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from polygraft.adapters.manifest import parse_manifest
from polygraft.client import AsyncClient, Client
from polygraft.trainer.data import Example
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.generate import Answer
from polygraft.trainer.scoring import Ask, Candidate, Prompt, prompt_of
from polygraft.trainer.shots import fill
from polygraft.trainer.source import max_output_tokens

CONCURRENCY = 32
"""Requests in flight: enough to fill the server's batch."""


def connect_candidate(address: str, reference: str) -> Candidate:
    """The version that `reference` names now; a later move of its alias changes nothing.

    Raises Unavailable when no server answers, AdapterNotFound naming what there is.
    """
    with Client(address) as client:
        version = client.get_adapter(reference).version
    if version is None:
        raise RecipeError(f"{reference} names no version to score.", item="reference")
    prompt = prompt_of(parse_manifest(version.manifest_json.encode()))
    return Candidate(
        prompt=prompt,
        ask_base=server_asker(address, "", by_variables=False),
        ask_adapter=server_asker(address, version.digest, by_variables=prompt is not None),
        digest=version.digest,
        virtual_tokens=version.virtual_tokens,
    )


def server_asker(address: str, adapter: str, *, by_variables: bool) -> Ask:
    """Ask an adapter by variables, as its users do, or anyone by the prompt they would make."""

    def ask(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        requests = [make_request(prompt, row, adapter, by_variables=by_variables) for row in rows]
        return asyncio.run(_ask_all(address, requests))

    return ask


def make_request(
    prompt: Prompt, row: Example, adapter: str, *, by_variables: bool
) -> dict[str, Any]:
    """Arguments of `client.generate` for one row, greedy."""
    request: dict[str, Any] = {
        "adapter": adapter,
        "temperature": 0.0,
        "max_output_tokens": max_output_tokens(prompt),
    }
    if by_variables and not row.messages:
        return request | {"variables": row.variables}
    stops = {
        "stop": prompt.get("stop_sequences") or (),
        "stop_token_ids": prompt.get("stop_token_ids") or (),
    }
    return request | stops | _text_input(prompt, row)


def count_tokens(address: str, adapter: str, prompt: Prompt, rows: Sequence[Example]) -> list[int]:
    """Prompt tokens of each row as the server encodes it, without virtual ones."""
    with Client(address) as client:
        return [len(client.tokenize(adapter=adapter, **_text_input(prompt, row))) for row in rows]


def _text_input(prompt: Prompt, row: Example) -> dict[str, Any]:
    """The row as finished text or messages."""
    if row.messages:
        return {"messages": list(row.messages)}
    text = fill(prompt, row)
    if prompt["wrap"] != "chat":
        return {"prompt": text}
    messages = [{"role": "user", "content": text}]
    if prompt.get("system"):
        messages.insert(0, {"role": "system", "content": prompt["system"]})
    return {"messages": messages}


async def _ask_all(address: str, requests: Sequence[dict[str, Any]]) -> list[Answer]:
    free = asyncio.Semaphore(CONCURRENCY)
    async with AsyncClient(address) as client:

        async def one(request: dict[str, Any]) -> Answer:
            async with free:
                generation = await client.generate(**request)
            return Answer([], generation.text, generation.finish_reason == "stop")

        return await asyncio.gather(*(one(request) for request in requests))
