"""Score sheets: how one version answered every row of a named set, kept beside the versions.

A sheet is written once and named by the sha256 of its canonical bytes, so a gate can say exactly
which numbers it decided on. A score measured later never changes a manifest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polygraft.adapters.canonical import canonical_bytes, sha256_digest
from polygraft.adapters.errors import AdapterCorrupt, InvalidRequest, NotFound
from polygraft.adapters.manifest import Count, Decimal, Sha256
from polygraft.adapters.names import DIGEST
from polygraft.adapters.stores.protocol import Store

SCHEMA: Literal["polygraft.score/1"] = "polygraft.score/1"
MAX_ROWS = 10_000
Text = Annotated[str, Field(min_length=1, max_length=256)]


class ScoreSheet(BaseModel):
    """One subject on every row of a set; the lists are parallel. `version` None: the base alone.

    `values` are the metric in percent, `seconds` the time of each answer, `groups` the group of
    each row (empty: each row is one).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_id: Literal["polygraft.score/1"] = Field(default=SCHEMA, alias="schema")
    version: str | None = Field(default=None, pattern=DIGEST.pattern)
    base_weights_sha256: Sha256
    metric: Text
    signature: Text
    data_sha256: Sha256
    data_name: Annotated[str, Field(max_length=256)] = ""
    decoding: Text
    values: tuple[Decimal, ...] = Field(min_length=1, max_length=MAX_ROWS, strict=False)
    stopped: tuple[bool, ...] = Field(strict=False)
    output_tokens: tuple[Count, ...] = Field(strict=False)
    seconds: tuple[Decimal, ...] = Field(strict=False)
    groups: tuple[Count, ...] = Field(default=(), strict=False)
    measured_by: Annotated[str, Field(max_length=256)] = ""
    measured_at: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _lists_are_parallel(self) -> ScoreSheet:
        rows = len(self.values)
        for name in ("stopped", "output_tokens", "seconds", "groups"):
            found = len(getattr(self, name))
            if found != rows and not (name == "groups" and found == 0):
                raise ValueError(f"{name} has {found} entries for {rows} values")
        return self

    @property
    def rows(self) -> int:
        """How many rows were answered."""
        return len(self.values)

    @property
    def numbers(self) -> list[float]:
        """The values as floats."""
        return [float(value) for value in self.values]

    @property
    def mean(self) -> float:
        """Over all rows, in percent."""
        return sum(self.numbers) / self.rows

    @property
    def stop_rate(self) -> float:
        """Share of answers that ended by themselves, in percent."""
        return 100.0 * sum(self.stopped) / self.rows


class ScoreBook:
    """Puts and gets the sheets of a store. Thread-safe; calls block on I/O."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, sheet: ScoreSheet) -> str:
        """Durable when it returns; the id, "sha256:<hex>"."""
        data = canonical_bytes(sheet.model_dump(mode="json", by_alias=True, exclude_unset=True))
        score_id = sha256_digest(data)
        self._store.create(_key(score_id), data)
        return score_id

    def get(self, score_id: str) -> ScoreSheet:
        """NotFound, or AdapterCorrupt when its bytes are not those of its id."""
        if not DIGEST.fullmatch(score_id):
            raise InvalidRequest(
                f"{score_id[:80]!r} is no id of a score.",
                item="score",
                allowed="sha256:<64 hex digits>",
                hint="Use the id that RecordScore returned.",
            )
        try:
            data = self._store.get(_key(score_id))
        except KeyError:
            raise NotFound(
                f"there is no score {score_id}.",
                reason="SCORE_NOT_FOUND",
                item="score",
                hint="Record it with RecordScore on this store.",
            ) from None
        if sha256_digest(data) != score_id:
            raise AdapterCorrupt(f"the stored score {score_id} has changed.", found=score_id)
        return ScoreSheet.model_validate_json(data)


def _key(score_id: str) -> str:
    return f"scores/sha256/{score_id.removeprefix('sha256:')}.json"
