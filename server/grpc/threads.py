"""Blocking calls of a handler, in threads, finished before the handler ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(
    executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """`work(...)` in a thread. A cancelled caller leaves only after the work has ended.

    Why: a thread cannot be cancelled, and the caller's clean-up must not run beside it.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(executor, lambda: work(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen: the caller is gone, nobody else will ask
        raise
