"""One frozen, validated recipe per run. Imports nothing heavy and reads no data.

Every section forbids unknown keys; `trainer.recipe` turns those errors into sentences. What is
`auto` here is resolved by the run and written to `config.resolved.yaml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from polygraft.trainer.config_data import Data, Ingredient, Section, Split
from polygraft.trainer.config_methods import (
    Full,
    Houlsby,
    Lora,
    Method,
    Prefix,
    PTuning,
    Selective,
    SoftPrompt,
)

__all__ = [
    "Base",
    "Data",
    "Eval",
    "Full",
    "Generate",
    "Houlsby",
    "Ingredient",
    "Lora",
    "Method",
    "Optim",
    "PTuning",
    "Prefix",
    "RunConfig",
    "Runtime",
    "Section",
    "Selective",
    "SoftPrompt",
    "Split",
    "Stopping",
]


class Base(Section):
    """The frozen base model that the adapter is trained on."""

    path: str = Field(default="builtin:nano", description="builtin name, directory or hub id")
    dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="of the frozen base weights")


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
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the arithmetic; auto: bf16 on CUDA that has it, else fp32"
    )
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
    init_from: Path | None = Field(
        default=None, description="an earlier run or adapter directory to go on from: a next round"
    )
    optim: Optim = Optim()
    eval: Eval = Eval()
    runtime: Runtime = Runtime()
    output: Path = Path("runs")

    @model_validator(mode="after")
    def _packs_only_whole_rows(self) -> Self:
        if self.data.packing and self.method.kind in ("prompt", "prefix", "p_tuning"):
            raise ValueError(
                f"data.packing does not go with {self.method.kind}, which stands in front of every "
                "row; leave packing out"
            )
        return self
