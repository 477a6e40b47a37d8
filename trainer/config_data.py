"""The data section of a recipe: where rows come from, and what is mixed in. Reads no data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Split(Section):
    """How one file becomes three splits: by the hash of a group key, never by row number."""

    validation: float = Field(default=0.1, gt=0, lt=1, description="fraction of the groups")
    test: float = Field(default=0.1, gt=0, lt=1, description="fraction of the groups")
    by: str | None = Field(
        default=None, description="field that names the group; none: the row's content"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1, or no row is left to train on")
        return self


class Ingredient(Section):
    """One source of a multi-task mixture: `rate` x `cap` of its train rows (FLAN, Wei et al. 2021).

    min(rows, cap) rows are drawn by seed, and `rate` times as many are mixed in.
    """

    task: str | None = Field(
        default=None, description="builtin:<name>, or builtin:mix for what the bundled base learned"
    )
    data: str | None = Field(default=None, description="file of rows, as in data.train")
    split: Split | None = Field(
        default=None, description="for a file of which parts are validation and test elsewhere"
    )
    template: str | tuple[str, ...] = "{prompt}"
    completion: str = "completion"
    wrap: Literal["none", "chat"] = "none"
    system: str | None = None
    rate: float = Field(default=1.0, gt=0, description="times that the capped rows are mixed in")
    cap: int | None = Field(default=None, gt=0, description="rows at most, before the rate")
    shots: int | tuple[int, ...] = Field(
        default=0, description="solved examples in front of a row; a list: one of these per row"
    )

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if (self.task is None) == (self.data is None):
            raise ValueError("give either task: builtin:<name> or data: <file>")
        if self.task is not None and not self.task.startswith("builtin:"):
            raise ValueError(f"task must be builtin:<name>, found {self.task!r}")
        if self.task is not None and self.split:
            raise ValueError("task brings its own splits; leave out split")
        if not self.forms or min(self.forms) < 0:
            raise ValueError("shots must be 0 or more")
        return self

    @property
    def forms(self) -> tuple[int, ...]:
        """Numbers of shots among which each row gets one."""
        return (self.shots,) if isinstance(self.shots, int) else self.shots

    @property
    def name(self) -> str:
        """What it is called in tables and manifests: never a private path."""
        return self.task or Path(str(self.data)).name


class Data(Section):
    """Where the rows come from and how one row becomes a prompt and a completion."""

    task: str | None = Field(
        default=None, description="builtin:<name>; brings its own prompt and splits"
    )
    train: str | None = Field(
        default=None,
        description="JSONL, CSV or Parquet file, or hf:owner/name:file; with `split`, all rows",
    )
    validation: str | None = None
    test: str | None = None
    split: Split | None = None
    form: Literal["auto", "fields", "messages", "text"] = Field(
        default="auto", description="of the rows; auto: told from the first one"
    )
    template: str | tuple[str, ...] = Field(
        default="{prompt}",
        description="the prompt, {field} filled from the row; or builtin:<id>, or several of these",
    )
    completion: str = Field(
        default="completion", description="field that holds what is to be learned"
    )
    wrap: Literal["none", "chat"] = Field(
        default="none", description="chat: the base's chat template"
    )
    system: str | None = Field(default=None, description="system message, with wrap: chat")
    stop_sequences: tuple[str, ...] = ()
    rows: int | None = Field(
        default=None, gt=0, description="use only the first rows of the train split"
    )
    mixture: tuple[Ingredient, ...] = Field(
        default=(), description="further sources to train on: several tasks, or old skills replayed"
    )
    max_length: int | None = Field(
        default=None, gt=1, description="tokens of prompt + completion; none: what fits, up to 2048"
    )
    on_overflow: Literal["error", "drop"] = Field(
        default="error", description="for longer rows; a completion is never cut"
    )
    packing: bool = Field(
        default=False, description="rows of a batch share sequences instead of being padded"
    )

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if (self.task is None) == (self.train is None):
            raise ValueError("give either task: builtin:<name> or train: <file>")
        if self.task is not None and (self.validation or self.test or self.split):
            raise ValueError("task brings its own splits; leave out validation, test and split")
        if self.task is not None and not self.task.startswith("builtin:"):
            raise ValueError(f"task must be builtin:<name>, found {self.task!r}")
        if self.train is not None and bool(self.split) == bool(self.validation and self.test):
            raise ValueError("with train give validation and test files, or split, not both")
        if self.system is not None and self.wrap != "chat":
            raise ValueError("system needs wrap: chat")
        return self
