"""UploadAdapter: a header, then chunks, written and validated in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from polygraft.adapters.errors import DeadlineExpired, InvalidRequest
from polygraft.adapters.uploads import PublishedUpload, Upload, Uploads
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.adapter_messages import read_header
from polygraft.server.grpc.threads import in_thread

MAX_CHUNK_BYTES = 1 << 20

Messages = AsyncIterator[pb.UploadAdapterRequest]


class UploadReceiver:
    """Receives one upload per call of `receive`; nothing is left of one that fails.

    `stall_timeout`: seconds between two messages of a client.
    """

    def __init__(self, uploads: Uploads, executor: Executor, *, stall_timeout: float) -> None:
        self._uploads = uploads
        self._executor = executor
        self._stall_timeout = stall_timeout

    async def receive(self, messages: Messages) -> PublishedUpload:
        """Raises what `adapters.uploads` raises, and InvalidRequest for messages out of order."""
        first = await self._next(messages)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidRequest(
                "the first message must be the header.", reason="INVALID_UPLOAD", item="header"
            )
        header = read_header(first.header)
        begun: list[Upload] = []
        try:
            # Why a list: a client that goes away meanwhile takes the result of the call with it.
            await in_thread(self._executor, lambda: begun.append(self._uploads.begin(header)))
            [upload] = begun
            while (message := await self._next(messages)) is not None:
                await self._write(upload, message)
            return await in_thread(self._executor, upload.finish)
        finally:
            for upload in begun:
                await in_thread(self._executor, upload.abort)

    async def _next(self, messages: Messages) -> pb.UploadAdapterRequest | None:
        """The next message; None when the client has sent all."""
        try:
            async with asyncio.timeout(self._stall_timeout):
                return await anext(messages, None)
        except TimeoutError as error:
            raise DeadlineExpired(
                f"the client sent nothing for {self._stall_timeout:g} s; the upload was dropped.",
                reason="UPLOAD_STALLED",
            ) from error

    async def _write(self, upload: Upload, message: pb.UploadAdapterRequest) -> None:
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequest(
                "every message after the first must be a chunk.",
                reason="INVALID_UPLOAD",
                item="chunk",
            )
        chunk = message.chunk
        if len(chunk.data) > MAX_CHUNK_BYTES:
            raise InvalidRequest(
                f"{len(chunk.data)} bytes are more than a chunk may have.",
                reason="INVALID_UPLOAD",
                item="chunk.data",
                found=len(chunk.data),
                allowed=MAX_CHUNK_BYTES,
            )
        await in_thread(
            self._executor, upload.write, chunk.file_index, chunk.offset_bytes, chunk.data
        )
