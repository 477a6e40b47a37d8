"""Server-sent events over HTTP/1.1 on asyncio streams: no more than load generation needs.

Why by hand: the load generator shares the cores with the server under measurement, and the usual
client libraries take as much time per event as a small model takes per token.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from typing import Any


class BadResponse(Exception):
    """The server answered with an error, or not in chunks; the message is what it said."""


async def post_events(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Send a JSON body to 127.0.0.1 and yield the JSON object of every `data:` line.

    Ends at `data: [DONE]` or at the end of the response. BadResponse for a status other than 200
    and for an event with an error.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request(path, json.dumps(body).encode()))
        await _read_head(reader)
        pending = b""
        while chunk := await _read_chunk(reader):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                field, _, data = line.partition(b":")
                if field == b"data" and data.strip() == b"[DONE]":
                    return
                if field == b"error" or (field == b"data" and b'"error":' in data[:20]):
                    raise BadResponse(line.decode(errors="replace"))
                if field == b"data":
                    yield json.loads(data)
    finally:
        writer.close()


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n"
        "\r\n"
    )
    return head.encode() + body


async def _read_head(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = head.split(" ", 2)[1]
    if status != "200" or "transfer-encoding: chunked" not in head:
        text = (await reader.read()).decode(errors="replace")
        raise BadResponse(f"status {status}: {head}{text}")


async def _read_chunk(reader: asyncio.StreamReader) -> bytes:
    """One chunk of a chunked body (RFC 9112, 7.1); empty at the end."""
    size = int((await reader.readline()).split(b";")[0], 16)
    data = await reader.readexactly(size + 2)  # with the line end
    return data[:-2]
