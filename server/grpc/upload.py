"""UploadAdapter: a header, then chunks, written and validated in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from polygraft.adapters.chunks import CHUNK_BYTES
from polygraft.adapters.errors import DeadlineExpired, InvalidRequest
from polygraft.adapters.upload import PublishedUpload, Upload
from polygraft.adapters.uploads import Uploads
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.adapter_messages import read_header
from polygraft.server.grpc.threads import in_thread

Messages = AsyncIterator[pb.UploadAdapterRequest]


class UploadReceiver:
    """Receives one upload per call of `receive`; what has come of one that breaks is kept.

    `stall_timeout`: seconds between two messages of a client.
    """

    def __init__(self, uploads: Uploads, executor: Executor, *, stall_timeout: float) -> None:
        self._uploads = uploads
        self._executor = executor
        self._stall_timeout = stall_timeout

    async def receive(self, messages: Messages) -> PublishedUpload:
        """Raises what `adapters.uploads` raises, and InvalidRequest for messages out of order.

        Answers without reading further when the content turns out to be published already.
        """
        first = await self._next(messages)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidRequest(
                "the first message must be the header.", reason="INVALID_UPLOAD", item="header"
            )
        header = read_header(first.header)
        known = await in_thread(self._executor, self._uploads.published, header)
        if known is not None:
            return known
        begun: list[Upload] = []
        try:
            # Why a list: a client that goes away meanwhile takes the result of the call with it.
            await in_thread(self._executor, lambda: begun.append(self._uploads.begin(header)))
            [upload] = begun
            while (message := await self._next(messages)) is not None:
                if not await self._write(upload, message):
                    break
            return await in_thread(self._executor, upload.finish)
        finally:
            for upload in begun:
                await in_thread(self._executor, self._uploads.end, upload)

    async def _next(self, messages: Messages) -> pb.UploadAdapterRequest | None:
        """The next message; None when the client has sent all."""
        try:
            async with asyncio.timeout(self._stall_timeout):
                return await anext(messages, None)
        except TimeoutError as error:
            raise DeadlineExpired(
                f"the client sent nothing for {self._stall_timeout:g} s.",
                reason="UPLOAD_STALLED",
                hint="What has come is kept; go on with the same header.",
            ) from error

    async def _write(self, upload: Upload, message: pb.UploadAdapterRequest) -> bool:
        """False when the upload needs no more bytes."""
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequest(
                "every message after the first must be a chunk.",
                reason="INVALID_UPLOAD",
                item="chunk",
            )
        chunk = message.chunk
        if len(chunk.data) > CHUNK_BYTES:
            raise _bad("data", f"{len(chunk.data)} bytes", f"at most {CHUNK_BYTES} bytes")
        if not chunk.HasField("crc32c"):
            raise _bad("crc32c", "none", "the CRC-32C of the data")
        return await in_thread(
            self._executor,
            upload.write,
            chunk.file_index,
            chunk.offset_bytes,
            chunk.data,
            chunk.crc32c,
        )


def _bad(field: str, found: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(
        f"{found} is not what a chunk must have ({allowed}).",
        reason="INVALID_UPLOAD",
        item=f"chunk.{field}",
        found=found,
        allowed=allowed,
    )
