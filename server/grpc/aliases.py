"""The handlers of aliases, scores and the gate: messages in, `adapters.promotion` asked, messages
out. Loading what an alias is about to point to is done here; whether it may point there is not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    InvalidRequest,
    PolygraftError,
)
from polygraft.adapters.names import not_found
from polygraft.adapters.promotion import Promotion, Promotions
from polygraft.adapters.registry import Registry
from polygraft.adapters.residency import Residency
from polygraft.adapters.scores import ScoreBook
from polygraft.protos import aliases_pb2, gate_pb2
from polygraft.server.grpc import alias_messages as messages
from polygraft.server.grpc.paging import page_of
from polygraft.server.grpc.threads import in_thread

logger = logging.getLogger(__name__)

LOAD_SECONDS = 10.0  # a move does not wait longer for room on the device
Wait = Callable[[Callable[..., None]], Awaitable[None]]
"""Runs something that waits, until the caller's deadline or until it leaves."""


class AliasHandlers:
    """Moves, rolls back, lists and scores. `executor` runs what reads and writes."""

    def __init__(
        self,
        registry: Registry,
        promotions: Promotions,
        scores: ScoreBook,
        residency: Residency,
        executor: Executor,
        *,
        base_weights_sha256: str,
    ) -> None:
        self._registry = registry
        self._promotions = promotions
        self._scores = scores
        self._residency = residency
        self._executor = executor
        self._base = base_weights_sha256

    async def update(
        self, request: aliases_pb2.UpdateAliasRequest, by: str, wait: Wait
    ) -> aliases_pb2.Alias:
        """Point an alias to one version or two."""
        wish = self._read_wish(request, by)
        for number, _ in wish.targets:
            await self._load(self._registry.version(wish.adapter_name, number).digest, wait)
        record = await in_thread(self._executor, self._promotions.promote, wish)
        return messages.write_alias(record)

    async def roll_back(
        self, request: aliases_pb2.RollbackAliasRequest, by: str
    ) -> aliases_pb2.Alias:
        """Bring older targets back. Waits for no load: whatever is wrong now must stop now."""
        record = await in_thread(
            self._executor,
            self._promotions.roll_back,
            request.adapter_name,
            request.alias,
            generation=request.generation,
            expected_generation=_expected(request),
            reason=request.reason,
            by=by,
        )
        return messages.write_alias(record)

    async def delete(self, request: aliases_pb2.DeleteAliasRequest, by: str) -> None:
        """Take an alias away."""
        await in_thread(
            self._executor,
            self._registry.remove_alias,
            request.adapter_name,
            request.alias,
            expected_generation=_expected(request),
            reason=request.reason,
            by=by,
        )

    def history(
        self, request: aliases_pb2.ListAliasHistoryRequest
    ) -> aliases_pb2.ListAliasHistoryResponse:
        """A page of moves, the newest first."""
        moves = self._registry.alias_history(request.adapter_name, request.alias)[::-1]
        if not moves:
            name = request.adapter_name
            known = [f"{name}@{record.alias}" for record in self._registry.aliases(name)]
            raise not_found("alias", f"{name}@{request.alias}", known)
        page, token = page_of(
            moves,
            lambda record: f"{2**62 - record.generation:020d}",  # ascending, as pages want it
            request.page_size,
            request.page_token,
        )
        return aliases_pb2.ListAliasHistoryResponse(
            moves=[messages.write_alias(record) for record in page], next_page_token=token
        )

    async def record_score(self, request: gate_pb2.RecordScoreRequest, by: str) -> gate_pb2.Score:
        """Keep how a version answered the rows of a set."""
        adapter = request.adapter
        digest = self._registry.resolve(adapter).digest if adapter else None
        sheet = messages.read_sheet(request, digest, self._base, by)
        score_id = await in_thread(self._executor, self._scores.put, sheet)
        return messages.write_score(score_id, sheet)

    def _read_wish(self, request: aliases_pb2.UpdateAliasRequest, by: str) -> Promotion:
        targets = messages.read_targets(request)
        if not targets:
            current = self._registry.alias(request.adapter_name, request.alias)
            if current is None or not request.HasField("policy"):
                raise InvalidRequest(
                    "the version to point to is missing.",
                    item="version_number",
                    hint="Set version_number or targets.",
                )
            targets = [(target.number, target.weight) for target in current.targets]
        return Promotion(
            adapter_name=request.adapter_name,
            alias=request.alias,
            targets=targets,
            expected_generation=_expected(request),
            reason=request.reason,
            by=by,
            evidence=messages.read_evidence(request.gate) if request.HasField("gate") else None,
            policy=messages.read_policy(request.policy) if request.HasField("policy") else None,
            force=request.force,
        )

    async def _load(self, digest: str, wait: Wait) -> None:
        """Why first: no request waits for the load, and what cannot be loaded is not promoted."""
        try:
            await wait(partial(self._residency.load, digest))
        except (AdapterInvalid, AdapterIncompatible):
            raise
        except PolygraftError as error:
            logger.warning("an alias moves to %s before it is loaded: %s", digest, error)


def _expected(
    request: (
        aliases_pb2.UpdateAliasRequest
        | aliases_pb2.RollbackAliasRequest
        | aliases_pb2.DeleteAliasRequest
    ),
) -> int | None:
    return request.expected_generation if request.HasField("expected_generation") else None
