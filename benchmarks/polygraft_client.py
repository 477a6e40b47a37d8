"""How every benchmark asks a Polygraft server: one stream per request, by the public client."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.load import Stream
from benchmarks.workload import WorkloadRequest
from polygraft.client import AsyncClient


async def open_client(address: str) -> AsyncClient:
    """A connected client, made inside the loop that uses it."""
    client = AsyncClient(address)
    await client.model()
    return client


def stream_by(client: AsyncClient) -> Stream:
    """Serves a request: exactly `max_output_tokens` greedy tokens, as they come."""

    async def stream(request: WorkloadRequest) -> AsyncIterator[list[int]]:
        pieces = client.stream(
            token_ids=request.prompt_token_ids,
            adapter=request.adapter,
            max_output_tokens=request.max_output_tokens,
            ignore_eos=True,
            return_token_ids=True,
        )
        async for piece in pieces:
            yield list(piece.token_ids)

    return stream
