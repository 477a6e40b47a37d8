"""AdapterService: reads messages, asks registry, uploads and residency, writes messages.

Reads of the registry are look-ups in memory; whatever may block runs in threads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial

from google.protobuf.empty_pb2 import Empty

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.names import namespace_of
from polygraft.adapters.registry import Registry, VersionRecord
from polygraft.adapters.residency import Residency
from polygraft.adapters.uploads import Uploads
from polygraft.protos import adapters_pb2 as pb
from polygraft.protos import adapters_pb2_grpc, aliases_pb2, events_pb2, gate_pb2
from polygraft.server.grpc.adapter_messages import AdapterWriter
from polygraft.server.grpc.aliases import LOAD_SECONDS, AliasHandlers
from polygraft.server.grpc.boundary import Context, caller_of, deadline_of
from polygraft.server.grpc.download import DownloadSender
from polygraft.server.grpc.paging import page_of
from polygraft.server.grpc.threads import in_thread
from polygraft.server.grpc.upload import UploadReceiver
from polygraft.server.grpc.watch import WatchSender

MAX_WAIT_SECONDS = 300.0


class AdapterServicer(adapters_pb2_grpc.AdapterServiceServicer):
    """Handlers of polygraft.v1.AdapterService.

    `executor` runs what reads and writes, `waiting` what waits for a load or for references,
    `uploading` what reads or writes whole files.
    """

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        uploads: Uploads,
        aliases: AliasHandlers,
        watches: WatchSender,
        base: BaseGeometry,
        executor: Executor,
        waiting: Executor,
        uploading: Executor,
        *,
        stall_timeout: float,
    ) -> None:
        self._registry = registry
        self._residency = residency
        self._executor = executor
        self._waiting = waiting
        self._writer = AdapterWriter(registry, residency, base)
        self._uploads = uploads
        self._aliases = aliases
        self._watches = watches
        self._receiver = UploadReceiver(uploads, uploading, stall_timeout=stall_timeout)
        self._sender = DownloadSender(
            registry, self._writer, uploading, stall_timeout=stall_timeout
        )

    async def UploadAdapter(
        self, requests: AsyncIterator[pb.UploadAdapterRequest], context: Context
    ) -> pb.UploadAdapterResponse:
        """Publish a version."""
        return self._writer.published(await self._receiver.receive(requests))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.Upload:
        """How far an upload has come."""
        status = await in_thread(self._executor, self._uploads.status, request.upload_id)
        return self._writer.upload(status)

    async def DownloadAdapter(self, request: pb.DownloadAdapterRequest, context: Context) -> None:
        """The files of a version."""
        await self._sender.send(self._resolve(request.adapter), context)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:
        """An adapter with the version that the reference names."""
        return self._writer.adapter_in_full(self._resolve(request.adapter))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        """A page of adapters by name."""
        names, token = page_of(self._registry.names(), str, request.page_size, request.page_token)
        # Why in a thread: each may read a manifest.
        adapters = await in_thread(self._executor, lambda: list(map(self._writer.adapter, names)))
        return pb.ListAdaptersResponse(adapters=adapters, next_page_token=token)

    async def ListAdapterVersions(
        self, request: pb.ListAdapterVersionsRequest, context: Context
    ) -> pb.ListAdapterVersionsResponse:
        """A page of versions by number."""
        records = await in_thread(self._executor, self._registry.versions, request.adapter_name)
        versions, token = page_of(
            records,
            lambda record: f"{record.number:010d}",
            request.page_size,
            request.page_token,
        )
        return pb.ListAdapterVersionsResponse(
            versions=[self._writer.version(record) for record in versions], next_page_token=token
        )

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Context) -> Empty:
        """Remove a name with its versions and aliases."""
        await in_thread(self._executor, self._registry.delete_adapter, request.adapter_name)
        return Empty()

    async def DeleteAdapterVersion(
        self, request: pb.DeleteAdapterVersionRequest, context: Context
    ) -> Empty:
        """Remove one version."""
        delete = self._registry.delete_version
        await in_thread(self._executor, delete, request.adapter_name, request.version_number)
        return Empty()

    async def UpdateAlias(
        self, request: aliases_pb2.UpdateAliasRequest, context: Context
    ) -> aliases_pb2.Alias:
        """Point an alias to a version, or to two."""

        async def wait(work: Callable[..., None]) -> None:
            await self._wait(work, context, LOAD_SECONDS)

        return await self._aliases.update(request, caller_of(context), wait)

    async def DeleteAlias(self, request: aliases_pb2.DeleteAliasRequest, context: Context) -> Empty:
        """Take an alias away."""
        await self._aliases.delete(request, caller_of(context))
        return Empty()

    async def ListAliasHistory(
        self, request: aliases_pb2.ListAliasHistoryRequest, context: Context
    ) -> aliases_pb2.ListAliasHistoryResponse:
        """A page of moves."""
        return self._aliases.history(request)

    async def RollbackAlias(
        self, request: aliases_pb2.RollbackAliasRequest, context: Context
    ) -> aliases_pb2.Alias:
        """Back to older targets."""
        return await self._aliases.roll_back(request, caller_of(context))

    async def RecordScore(
        self, request: gate_pb2.RecordScoreRequest, context: Context
    ) -> gate_pb2.Score:
        """Keep a score."""
        return await self._aliases.record_score(request, caller_of(context))

    async def WatchAdapters(
        self, request: events_pb2.WatchAdaptersRequest, context: Context
    ) -> None:
        """Events as they come."""
        await self._watches.send(request, context)

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: Context
    ) -> pb.AdapterVersion:
        """Bring a version onto the device."""
        record = self._resolve(request.adapter)
        load = partial(
            self._residency.load,
            record.digest,
            pin=request.pin,
            namespace=namespace_of(record.adapter_name),
        )
        await self._wait(load, context)
        return self._writer.version(record)

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Context
    ) -> pb.AdapterVersion:
        """Remove a version from device and host."""
        record = self._resolve(request.adapter)
        await self._wait(partial(self._residency.unload, record.digest), context)
        return self._writer.version(record)

    async def _wait(
        self, wait: Callable[..., None], context: Context, limit: float = MAX_WAIT_SECONDS
    ) -> None:
        """`wait(timeout=..., abandoned=...)` until the caller's deadline, or until it leaves."""
        deadline, abandoned = deadline_of(context), threading.Event()
        timeout = limit if deadline is None else deadline - time.monotonic()
        wait = partial(wait, timeout=min(timeout, limit), abandoned=abandoned)
        try:
            await asyncio.get_running_loop().run_in_executor(self._waiting, wait)
        except asyncio.CancelledError:
            self._residency.abandon(abandoned)  # else it would keep its thread until the timeout
            raise

    def _resolve(self, adapter: str) -> VersionRecord:
        if not adapter:
            raise InvalidRequest(
                "the reference of an adapter is missing.",
                reason="INVALID_REFERENCE",
                item="adapter",
                hint='Name one, for example "summarize" or "summarize@7".',
            )
        return self._registry.resolve(adapter)
