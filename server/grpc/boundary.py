"""The border of every RPC: bytes are parsed here, errors become statuses, calls are counted.

Handlers behind it get parsed messages and raise domain errors. Why parse here: bytes that the
runtime cannot decode are answered UNKNOWN before any of our code runs.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc

from polygraft.adapters.errors import PolygraftError
from polygraft.server.grpc.parsing import Parse, parse_bytes, strictly
from polygraft.server.grpc.status import RpcStatus, code_of, status_of
from polygraft.server.metrics import Metrics

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

OWN_SERVICES = "/polygraft.v1."  # the rest, health and reflection, answers to the end

_request_id: ContextVar[str] = ContextVar("request_id")


def current_request_id() -> str:
    """The id of the RPC that the running task answers."""
    return _request_id.get()


def deadline_of(context: Context) -> float | None:
    """When the caller stops waiting, on the monotonic clock; None if it never does."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def caller_of(context: Context) -> str:
    """Who calls: until callers have identities, the address without its port."""
    kind, _, address = str(context.peer()).partition(":")
    return address.rpartition(":")[0] or kind if kind.startswith("ipv") else kind


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server, whatever its kind."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._refusal: PolygraftError | None = None

    def refuse_new(self, error: PolygraftError) -> None:
        """Answer every new call of our own services with `error`; running ones go on."""
        self._refusal = error

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The same handler, taking bytes. None: no such method, answered UNIMPLEMENTED."""
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None
        path = str(handler_call_details.method)
        return self._wrap(handler, path.rpartition("/")[2], path.startswith(OWN_SERVICES))

    def _wrap(self, handler: Handler, method: str, is_own: bool) -> Handler:
        behavior: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        read = _read_stream if handler.request_streaming else parse_bytes
        parse = handler.request_deserializer
        assert parse is not None  # generated handlers have one
        parse = strictly(parse) if is_own else parse
        refusal = self._refusal if is_own else None

        async def answer_once(request: Any, context: Context) -> Any:
            async with self._border(method, context, refusal):
                return await behavior(read(request, parse), context)

        async def answer_stream(request: Any, context: Context) -> None:
            async with self._border(method, context, refusal):
                responses = behavior(read(request, parse), context)
                if inspect.isawaitable(responses):
                    await responses  # it writes to the context itself
                    return
                async for response in responses:
                    await context.write(response)

        make, answer = {
            (False, False): (grpc.unary_unary_rpc_method_handler, answer_once),
            (False, True): (grpc.unary_stream_rpc_method_handler, answer_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, answer_once),
            (True, True): (grpc.stream_stream_rpc_method_handler, answer_stream),
        }[handler.request_streaming, handler.response_streaming]
        wrapped: Handler = make(answer, None, handler.response_serializer)
        return wrapped

    @asynccontextmanager
    async def _border(
        self, method: str, context: Context, refusal: PolygraftError | None
    ) -> AsyncIterator[None]:
        """Give the RPC an id, end it with the status of the error raised inside, count it."""
        request_id = uuid.uuid4().hex
        _request_id.set(request_id)
        started_at = time.monotonic()
        code = grpc.StatusCode.OK.name
        try:
            if refusal is not None:
                raise refusal
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED.name
            raise  # Why: returning normally leaks native memory per cancelled call (grpc#43360)
        except grpc.aio.AbortError:
            code = _name(context.code())
            raise
        except grpc.aio.BaseError as error:
            code = grpc.StatusCode.CANCELLED.name  # the client is gone: nothing can be sent
            raise _gone() from error
        except Exception as error:
            status = status_of(error, request_id)
            code = status.code.name
            self._note(error, method, request_id)
            await _abort(context, status)
        finally:
            self._metrics.count_call(method, code, time.monotonic() - started_at)

    def _note(self, error: Exception, method: str, request_id: str) -> None:
        """Count a refusal; log what is no refusal but a bug."""
        if isinstance(error, PolygraftError) and code_of(error) is not None:
            self._metrics.count_error(error.code)
            return
        self._metrics.count_error("INTERNAL")
        logger.error("%s failed, request %s", method, request_id, exc_info=error)


async def _abort(context: Context, status: RpcStatus) -> None:
    """End the RPC with a status; raises what gRPC wants to see then."""
    try:
        await context.abort(status.code, status.message, status.metadata)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as error:
        raise _gone() from error


def _gone() -> asyncio.CancelledError:
    """What ends the RPC of a client that is gone. Why: gRPC logs anything else with a traceback."""
    return asyncio.CancelledError("the client is gone")


async def _read_stream(messages: AsyncIterator[bytes], parse: Parse) -> AsyncIterator[Any]:
    async for data in messages:
        yield parse_bytes(data, parse)


def _name(code: Any) -> str:
    """The name of a status code, which the runtime keeps as a StatusCode or as a number."""
    for known in grpc.StatusCode:
        if code in (known, known.value[0]):
            return known.name
    return grpc.StatusCode.UNKNOWN.name
