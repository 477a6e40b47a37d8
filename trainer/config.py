"""One frozen, validated recipe per run. Imports nothing heavy and reads no data.

Every section forbids unknown keys; `trainer.recipe` turns those errors into sentences. What is
`auto` here is resolved by the run and written to `config.resolved.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(Section):
    """The frozen base model that the adapter is trained on."""

    path: str = Field(default="builtin:nano", description="builtin name, directory or hub id")
    dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="of the frozen base weights")


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
    max_length: int | None = Field(
        default=None, gt=1, description="tokens of prompt + completion; none: what fits, up to 2048"
    )
    on_overflow: Literal["error", "drop"] = Field(
        default="error", description="for longer rows; a completion is never cut"
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


class Lora(Section):
    """Low-rank updates beside frozen linear layers (Hu et al. 2021)."""

    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, gt=0, le=1024)
    alpha: int | None = Field(default=None, gt=0, description="none: twice r")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear", "attention", "mlp", "qv"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, ...] | None = Field(default=None, description="none: all; -1 is the last")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(r) instead of alpha / r")
    dora: bool = Field(default=False, description="train the norm of each output apart (DoRA)")
    rank_pattern: dict[str, Annotated[int, Field(gt=0, le=1024)]] = Field(
        default={}, description="module name or pattern -> its own r"
    )
    alpha_pattern: dict[str, Annotated[int, Field(gt=0)]] = {}


class SoftPrompt(Section):
    """Trained input embeddings in front of every prompt (Lester et al. 2021)."""

    kind: Literal["prompt"] = "prompt"
    virtual_tokens: int = Field(default=20, gt=0, le=1024)
    init: Literal["text", "vocab", "random"] = "text"
    init_text: str | None = Field(
        default=None, description="none: the literal text of the template"
    )


class Prefix(Section):
    """Trained keys and values in front of every layer's (Li and Liang 2021)."""

    kind: Literal["prefix"] = "prefix"
    virtual_tokens: int = Field(default=20, gt=0, le=1024)
    init: Literal["zero", "random"] = Field(default="zero", description="random: small, scaled")


class PTuning(Section):
    """Trained input embeddings that a small encoder makes (Liu et al. 2021)."""

    kind: Literal["p_tuning"] = "p_tuning"
    virtual_tokens: int = Field(default=20, gt=0, le=1024)
    encoder: Literal["mlp", "lstm"] = "mlp"
    encoder_hidden_size: int | None = Field(default=None, gt=0, description="none: the base's")


class Houlsby(Section):
    """Bottleneck layers behind attention and MLP (Houlsby et al. 2019). Not served yet."""

    kind: Literal["houlsby"] = "houlsby"
    bottleneck: int = Field(default=16, gt=0, le=4096)
    where: tuple[Literal["attention", "mlp"], ...] = Field(
        default=("attention", "mlp"), min_length=1
    )
    layers: tuple[int, ...] | None = Field(default=None, description="none: all; -1 is the last")


class Selective(Section):
    """Some of the base's own parameters. Not served: an adapter may not change the base."""

    kind: Literal["selective"] = "selective"
    layers: tuple[int, ...] | None = Field(default=None, description="e.g. [-2, -1]")
    params: str | None = Field(default=None, description="regular expression on parameter names")
    l2sp: float = Field(default=0.0, ge=0, description="penalty on the squared distance from start")

    @model_validator(mode="after")
    def _chooses_once(self) -> Self:
        if (self.layers is None) == (self.params is None):
            raise ValueError("give either layers or params")
        try:
            re.compile(self.params or "")
        except re.error as error:
            raise ValueError(f"params is no regular expression: {error}") from None
        return self


class Full(Section):
    """All of the base's parameters. Not served: an adapter may not change the base."""

    kind: Literal["full"] = "full"
    l2sp: float = Field(default=0.0, ge=0, description="penalty on the squared distance from start")


Method = Annotated[
    Lora | SoftPrompt | Prefix | PTuning | Houlsby | Selective | Full, Field(discriminator="kind")
]


class Optim(Section):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    epochs: float = Field(default=4.0, gt=0)
    batch: int = Field(default=16, gt=0, description="rows per forward")
    accumulate: int = Field(default=1, gt=0, description="forwards per step")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)


class Stopping(Section):
    """End the run when the validation metric no longer improves."""

    patience: int = Field(default=3, gt=0, description="evaluations without improvement")
    min_delta: float = Field(default=0.001, ge=0)


class Generate(Section):
    """Greedy answers generated on validation rows while training."""

    rows: int = Field(default=64, gt=0)
    max_new_tokens: int | None = Field(
        default=None, gt=0, description="none: the task's own, else from the longest completion"
    )
    samples: int = Field(
        default=4, ge=0, description="answers kept per evaluation in samples.jsonl"
    )


class Eval(Section):
    """Validation during the run; the best checkpoint by `metric` is the one that is kept."""

    every: float = Field(default=1.0, gt=0, description="epochs between evaluations")
    metric: Literal["auto", "rougeL", "exact_match", "loss"] = "auto"
    early_stopping: Stopping | None = None
    forgetting: str | None = Field(
        default=None,
        description="builtin:mix, or a file of rows with skill, prompt and completion: also asked "
        "before, after and detached",
    )
    generate: Generate = Generate()


class Runtime(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(
        default=None, gt=0, description="none: 1 for small bases, else torch's"
    )
    account_memory: bool = Field(
        default=True, description="predict a step's memory before, measure it after; two steps"
    )


class RunConfig(Section):
    """A whole run: base, data, method, optimiser, evaluation, place of the output."""

    version: Literal[1] = 1
    name: str = Field(default="run", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    seed: int = Field(default=0, ge=0, lt=2**32)
    base: Base = Base()
    data: Data
    method: Method = Lora()
    optim: Optim = Optim()
    eval: Eval = Eval()
    runtime: Runtime = Runtime()
    output: Path = Path("runs")
