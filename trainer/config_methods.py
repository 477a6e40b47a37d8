"""The method section of a recipe: one class per kind.

So a setting of another kind is an error that names the kind.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from polygraft.trainer.config_data import Ingredient, Section


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
    quantize: Literal["none", "nf4"] = Field(
        default="none", description="nf4: the base in 4 bits (QLoRA); refused, not built yet"
    )
    rank_pattern: dict[str, Annotated[int, Field(gt=0, le=1024)]] = Field(
        default={}, description="module name or pattern -> its own r"
    )
    alpha_pattern: dict[str, Annotated[int, Field(gt=0)]] = Field(default={})
    kernel: Literal["peft", "fused"] = Field(
        default="peft", description="what computes it; fused: the serving kernel (decision 21)"
    )


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
    ewc: float = Field(
        default=0.0, ge=0, description="the same, by the weight's Fisher information"
    )
    fisher: Ingredient = Ingredient(task="builtin:mix", cap=200)

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
    ewc: float = Field(
        default=0.0, ge=0, description="the same, by the weight's Fisher information"
    )
    fisher: Ingredient = Ingredient(task="builtin:mix", cap=200)


Method = Annotated[
    Lora | SoftPrompt | Prefix | PTuning | Houlsby | Selective | Full, Field(discriminator="kind")
]
