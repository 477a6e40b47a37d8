"""DownloadAdapter: the manifest, then the files of a version, in the chunks they came in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import BinaryIO

from polygraft.adapters.chunks import CHUNK_BYTES, crc32c
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.adapter_messages import AdapterWriter
from polygraft.server.grpc.boundary import Context
from polygraft.server.grpc.threads import in_thread
from polygraft.server.outputs import SlowReader


class DownloadSender:
    """Sends versions; holds one chunk of each download in memory.

    `stall_timeout`: seconds that a client may take to read a message.
    """

    def __init__(
        self,
        registry: Registry,
        writer: AdapterWriter,
        executor: Executor,
        *,
        stall_timeout: float,
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._executor = executor
        self._stall_timeout = stall_timeout

    async def send(self, record: VersionRecord, context: Context) -> None:
        """The header, then all chunks, files in the manifest's order.

        The stored bytes are hashed before the first message. A version that is deleted meanwhile
        is sent to its end. Raises AdapterCorrupt, and SlowReader for a client that does not read.
        """
        with ExitStack() as stack:
            streams = await in_thread(self._executor, self._open, record, stack)
            header = self._writer.download_header(record)
            await self._write(pb.DownloadAdapterResponse(header=header), context)
            chunks = _read(streams)
            while (chunk := await in_thread(self._executor, next, chunks, None)) is not None:
                await self._write(pb.DownloadAdapterResponse(chunk=chunk), context)

    def _open(self, record: VersionRecord, stack: ExitStack) -> list[BinaryIO]:
        """Why all files at once: an open file outlives the deletion of its version."""
        files = self._registry.files(record.digest)
        return [stack.enter_context(files[f.name].open("rb")) for f in record.manifest.files]

    async def _write(self, message: pb.DownloadAdapterResponse, context: Context) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise SlowReader(
                f"the client did not read for {self._stall_timeout:g} s.",
                allowed=self._stall_timeout,
                hint="Read the stream faster.",
            ) from error


def _read(streams: list[BinaryIO]) -> Iterator[pb.FileChunk]:
    for index, stream in enumerate(streams):
        offset = 0
        while data := stream.read(CHUNK_BYTES):
            yield pb.FileChunk(
                file_index=index, offset_bytes=offset, data=data, crc32c=crc32c(data)
            )
            offset += len(data)
