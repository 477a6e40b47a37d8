"""The asynchronous client: the methods of `Client`, to be awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc
import grpc.aio

from polygraft.adapters.errors import PolygraftError, UploadNotFound
from polygraft.client import alias_calls, calls
from polygraft.client.alias_results import Alias
from polygraft.client.answers import Generation, GenerationBuilder, Piece
from polygraft.client.call import Call
from polygraft.client.channel import (
    CHANNEL_OPTIONS,
    DEFAULT_ADDRESS,
    STREAM_SECONDS,
    UNARY_SECONDS,
    UPLOAD_SECONDS,
)
from polygraft.client.download import Download
from polygraft.client.failure import error_of
from polygraft.client.options import GenerateOptions, write_generate
from polygraft.client.results import Adapter, AdapterVersion, Upload
from polygraft.client.resume import Resumption
from polygraft.client.retry import RetryPolicy
from polygraft.client.upload import Progress, UploadSource
from polygraft.client.watch import METHOD as WATCH
from polygraft.client.watch import AsyncWatch, request_of
from polygraft.protos import adapters_pb2, generation_pb2

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    make: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method that awaits the call which `make` describes."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(make(*args, **kwargs))

    calls.describe(method, make)
    return method


class AsyncClient:
    """Calls a server from an event loop; arguments and errors are those of `Client`."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = UNARY_SECONDS,
        stream_timeout: float = STREAM_SECONDS,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._stream_timeout = stream_timeout
        self._retry = retry or RetryPolicy()
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    generate = _awaited(calls.generate)
    score = _awaited(calls.score)
    tokenize = _awaited(calls.tokenize)
    detokenize = _awaited(calls.detokenize)
    model = _awaited(calls.model)
    get_adapter = _awaited(calls.get_adapter)
    get_upload = _awaited(calls.get_upload)
    delete_adapter = _awaited(calls.delete_adapter)
    delete_version = _awaited(calls.delete_version)
    move_alias = _awaited(alias_calls.move_alias)
    rollback_alias = _awaited(alias_calls.rollback_alias)
    delete_alias = _awaited(alias_calls.delete_alias)
    record_score = _awaited(alias_calls.record_score)
    load_adapter = _awaited(calls.load_adapter)
    unload_adapter = _awaited(calls.unload_adapter)

    def stream(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """The answer as it is made: iterate over its pieces with `async for`."""
        timeout = options.get("timeout", self._stream_timeout)
        return AsyncStream(self, write_generate(prompt, options), timeout)

    async def upload_adapter(
        self,
        source: str | Path | Mapping[str, Path],
        name: str,
        *,
        alias: str = "",
        allow_unverified_base: bool = False,
        allow_no_effect: bool = False,
        no_alias: bool = False,
        progress: Progress | None = None,
        timeout: float = UPLOAD_SECONDS,
    ) -> Upload:
        """Publish a PEFT or run directory as a new version of `name`, and move `alias` to it.

        With `no_alias` none moves, not even `live` to the first version of a name.
        A broken connection or a server that restarts is waited out, and only what it lacks is sent
        again; so does another call with the same arguments, also by another process.
        """
        opened = await asyncio.to_thread(UploadSource.open, source)
        header = opened.header(
            name,
            alias=alias,
            allow_unverified_base=allow_unverified_base,
            allow_no_effect=allow_no_effect,
            no_alias=no_alias,
        )
        deadline, resumption = time.monotonic() + timeout, Resumption(self._retry)
        while True:
            try:
                persisted = await self._persisted(header.upload_id, deadline)
                resumption.reached(persisted)
                messages = opened.messages(header, persisted, progress)
                upload = Upload.read(await self._send(messages, deadline))
                opened.finished(progress)
                return upload
            except PolygraftError as error:
                wait = resumption.wait_after(error)
                if wait is None or time.monotonic() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)

    async def _persisted(self, upload_id: str, deadline: float) -> dict[str, int]:
        """Bytes of an upload that the server has, by file."""
        timeout = min(self._timeout, deadline - time.monotonic())
        try:
            return await self._once(calls.persisted(upload_id, timeout), timeout)
        except UploadNotFound:
            return {}

    async def _send(self, messages: Iterator[Any], deadline: float) -> Any:
        method = self._channel.stream_unary(
            calls.path_of("UploadAdapter"),
            request_serializer=adapters_pb2.UploadAdapterRequest.SerializeToString,
            response_deserializer=calls.parser_of("UploadAdapter"),
        )
        timeout = deadline - time.monotonic()
        return await self._finish(method(_off_the_loop(messages), timeout=timeout))

    async def download_adapter(
        self,
        reference: str,
        directory: str | Path,
        *,
        progress: Progress | None = None,
        timeout: float = UPLOAD_SECONDS,
    ) -> AdapterVersion:
        """The files of a version, byte for byte, with its manifest, in a new directory."""
        deadline, attempt = time.monotonic() + timeout, 0
        while True:
            attempt += 1
            try:
                return await self._download(reference, Path(directory), progress, deadline)
            except PolygraftError as error:
                await self._wait(attempt, error, deadline)

    async def _download(
        self, reference: str, directory: Path, progress: Progress | None, deadline: float
    ) -> AdapterVersion:
        method = self._channel.unary_stream(
            calls.path_of("DownloadAdapter"),
            request_serializer=adapters_pb2.DownloadAdapterRequest.SerializeToString,
            response_deserializer=calls.parser_of("DownloadAdapter"),
        )
        request = adapters_pb2.DownloadAdapterRequest(adapter=reference)
        call = method(request, timeout=deadline - time.monotonic())
        with Download(directory, progress) as download:
            try:
                async for message in call:
                    await asyncio.to_thread(download.add, message)
            except grpc.aio.AioRpcError as error:
                raise self._error(error) from None
            finally:
                call.cancel()
            return await asyncio.to_thread(download.finish)

    async def list_adapters(self) -> list[Adapter]:
        """All adapters with their live versions, by name."""
        return await self._all_pages(calls.list_adapters)

    async def list_versions(self, name: str) -> list[AdapterVersion]:
        """All versions of an adapter, by number."""
        return await self._all_pages(lambda token: calls.list_versions(name, token))

    async def alias_history(self, name: str, alias: str = "live") -> list[Alias]:
        """All moves of an alias that are kept, the newest first: who, when, why, what scores."""
        return await self._all_pages(lambda token: alias_calls.alias_history(name, alias, token))

    def watch(
        self,
        name: str = "",
        *,
        cursor: str = "",
        include_residency: bool = False,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """What happens to adapters, or to one of them, from now on or behind a cursor."""
        method: Any = self._channel.unary_stream(
            calls.path_of(WATCH),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=calls.parser_of(WATCH),
        )
        request = request_of(name, cursor, include_residency)
        return AsyncWatch(method(request, timeout=timeout), self._error)

    async def _run(self, call: Call[T]) -> T:
        """One unary call, tried again as the policy says, within its timeout."""
        deadline = time.monotonic() + (self._timeout if call.timeout is None else call.timeout)
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(call, deadline - time.monotonic())
            except PolygraftError as error:
                await self._wait(attempt, error, deadline)

    async def _once(self, call: Call[T], timeout: float) -> T:
        """One attempt of a unary call."""
        method: Any = self._channel.unary_unary(
            calls.path_of(call.method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=calls.parser_of(call.method),
        )
        return call.read(await self._finish(method(call.request, timeout=timeout)))

    async def _wait(self, attempt: int, error: PolygraftError, deadline: float) -> None:
        """Sleep before the next attempt, or raise `error`."""
        wait = self._retry.wait_after(attempt, error)
        if wait is None or time.monotonic() + wait >= deadline:
            raise error
        await asyncio.sleep(wait)

    async def _finish(self, call: Any) -> Any:
        """The response. Why cancel: abandoned calls are never collected (grpc#43462)."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()

    def _error(self, error: grpc.aio.AioRpcError) -> PolygraftError:
        return error_of(
            error.code(), error.details() or "", error.trailing_metadata(), self.address
        )

    async def _all_pages(self, page: Callable[[str], Call[tuple[list[T], str]]]) -> list[T]:
        items, token = await self._run(page(""))
        while token:
            more, token = await self._run(page(token))
            items += more
        return items


async def _off_the_loop(messages: Iterator[T]) -> AsyncIterator[T]:
    """The same messages; each is read and hashed in a thread."""
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


class AsyncStream:
    """An answer while it is made: an asynchronous iterator over pieces.

    `generation` is the whole answer once the last piece has come. Leaving early (`aclose`,
    `async with`, or dropping the iterator) ends the generation on the server.
    """

    def __init__(
        self, client: AsyncClient, request: generation_pb2.GenerateRequest, timeout: float
    ) -> None:
        self._builder = GenerationBuilder()
        self._pieces = _read(client, self._builder, request, timeout)

    @property
    def generation(self) -> Generation | None:
        """The whole answer; None until it is complete."""
        return self._builder.generation

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """End the generation."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _read(
    client: AsyncClient,
    builder: GenerationBuilder,
    request: generation_pb2.GenerateRequest,
    timeout: float,
) -> AsyncGenerator[Piece, None]:
    """Why no method: a stream that its own generator refers to would outlive its last user."""
    method = client._channel.unary_stream(
        calls.path_of("StreamGenerate"),
        request_serializer=generation_pb2.GenerateRequest.SerializeToString,
        response_deserializer=calls.parser_of("StreamGenerate"),
    )
    deadline = time.monotonic() + timeout
    attempt = 0
    while True:
        attempt += 1
        call = method(request, timeout=deadline - time.monotonic())
        try:
            async for message in call:
                yield builder.add(message)
            return
        except grpc.aio.AioRpcError as failed:
            error = client._error(failed)
            if builder.has_begun:
                raise error from None  # what was seen cannot be taken back
        finally:
            call.cancel()
        await client._wait(attempt, error, deadline)
