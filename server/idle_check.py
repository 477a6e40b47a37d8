"""Looks the books over while nothing runs, so that a leak is told before it runs anybody dry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future

logger = logging.getLogger(__name__)

_ENGINE_SECONDS = 10.0  # for the engine to get to it
_AGAIN_SECONDS = 0.2


class IdleCheck:
    """Every `every` seconds, if `is_idle`: `engine_check` gives the outcome of the engine's own
    check, which runs on its thread between two steps; `others` run in a thread of their own.

    What they assert is logged and told to `count`; nothing is ended for it. Something may begin in
    the midst of a check, so only what is wrong twice in a row, in one idle time, is told.
    """

    def __init__(
        self,
        is_idle: Callable[[], bool],
        engine_check: Callable[[], Future[None]],
        others: Callable[[], None],
        count: Callable[[], None],
        *,
        every: float,
    ) -> None:
        self._is_idle = is_idle
        self._engine_check = engine_check
        self._others = others
        self._count = count
        self._every = every

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            await asyncio.sleep(self._every)
            if await self._find() is None:
                continue
            await asyncio.sleep(_AGAIN_SECONDS)
            if (found := await self._find()) is not None:
                self._count()
                logger.error("while nothing runs, the books do not agree: %s", found)

    async def _find(self) -> str | None:
        """What is wrong; None if nothing is, or if it was too busy to tell."""
        if not self._is_idle():
            return None
        try:
            checked = asyncio.wrap_future(self._engine_check())
            await asyncio.wait_for(checked, _ENGINE_SECONDS)
            await asyncio.to_thread(self._others)
        except TimeoutError:
            return None  # stuck or dead; health tells
        except AssertionError as error:
            return str(error) if self._is_idle() else None
        return None
