"""Everything a run needs before its first step: checked rows, the base, no `auto` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polygraft.trainer.checks import Checked, check_rows
from polygraft.trainer.config import RunConfig
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded, encode_examples
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.forgetting.general import General, load_general
from polygraft.trainer.progress import Observer
from polygraft.trainer.source import Source, build_recipe, load_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polygraft.adapters.geometry import BaseGeometry
    from polygraft.trainer.frozen_base import FrozenBase

DEFAULT_MAX_LENGTH = 2048
"""Tokens of a row where the recipe sets no limit and the base has more positions."""


@dataclass(frozen=True)
class Prepared:
    """Data that passed every check, and the base to train on."""

    config: RunConfig
    """With every automatic choice made."""
    source: Source
    train: list[Encoded]
    validation: list[Encoded]
    base: FrozenBase
    geometry: BaseGeometry
    learning_rate: float
    max_new_tokens: int
    general: General | None = None
    """Old skills to ask before and after, where the recipe wants that."""


def prepare(config: RunConfig, observer: Observer) -> Prepared:
    """Load and check the data, then the base; resolve what the recipe left to the trainer."""
    from polygraft.adapters.geometry import describe_base
    from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer

    source = load_source(config.data)
    asked = config.eval.forgetting
    general = load_general(asked) if asked else None
    tokenizer = load_tokenizer(config.base.path)
    max_length = _max_length(config)
    checked = {
        name: _checked(name, rows, source, tokenizer, max_length, config.data.on_overflow)
        for name, rows in source.splits.named().items()
    }
    for note in [*source.notes, *(w for part in checked.values() for w in part.warnings)]:
        observer.note(note)
    device = _device(config.runtime.device)
    base = load_frozen_base(config.base.path, tokenizer, dtype=config.base.dtype, device=device)
    threads = _set_threads(config, base)
    geometry = describe_base(
        base.model, base.model.config, name=base.name, fingerprint=base.fingerprint
    )
    train, validation = checked["train"].rows, checked["validation"].rows
    learning_rate = _learning_rate(config, base)
    max_new_tokens = _max_new_tokens(config, source, train)
    observer.note(
        f"learning rate {learning_rate:g}, judged by {_metric(config, source)}, answers of up to "
        f"{max_new_tokens} tokens"
    )
    kept = {name: [row.example for row in part.rows] for name, part in checked.items()}
    return Prepared(
        config=_resolved(config, source, base, max_length, learning_rate, max_new_tokens, threads),
        source=source.with_rows(**kept).with_limit(max_new_tokens),
        train=train,
        validation=validation,
        base=base,
        geometry=geometry,
        learning_rate=learning_rate,
        max_new_tokens=max_new_tokens,
        general=general,
    )


def _checked(
    name: str,
    rows: Sequence[Example],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_overflow: Literal["error", "drop"],
) -> Checked:
    encoded = encode_examples(rows, build_recipe(source.prompt, tokenizer), tokenizer)
    return check_rows(name, encoded, max_length, on_overflow)


def _max_length(config: RunConfig) -> int:
    """Tokens a row may have: a soft prompt in front of it must fit the base's positions too."""
    from polygraft.trainer.frozen_base import read_context_length

    virtual: int = getattr(config.method, "virtual_tokens", 0)
    window = read_context_length(config.base.path)
    wanted = config.data.max_length
    if wanted is None:
        return DEFAULT_MAX_LENGTH if window is None else min(window - virtual, DEFAULT_MAX_LENGTH)
    if window is not None and wanted + virtual > window:
        raise RecipeError(
            f"rows of up to {wanted} tokens and {virtual} virtual tokens do not fit the base's "
            f"context of {window}.",
            item="data.max_length",
            hint=f"Set it to at most {window - virtual}, or leave it out.",
        )
    return wanted


def _learning_rate(config: RunConfig, base: FrozenBase) -> float:
    from polygraft.trainer.methods import learning_rate

    if config.optim.lr == "auto":
        return learning_rate(config.method, int(base.model.num_parameters()))
    return config.optim.lr


def _metric(config: RunConfig, source: Source) -> str:
    return source.metric if config.eval.metric == "auto" else config.eval.metric


def _max_new_tokens(config: RunConfig, source: Source, rows: Sequence[Encoded]) -> int:
    """As the recipe says; else the task's own limit; else a quarter over the longest completion."""
    if config.eval.generate.max_new_tokens is not None:
        return config.eval.generate.max_new_tokens
    declared = source.prompt["defaults"].get("max_output_tokens")
    if declared is not None:
        return int(declared)
    longest = max(len(row.completion) for row in rows)
    return longest + longest // 4 + 1


def _resolved(
    config: RunConfig,
    source: Source,
    base: FrozenBase,
    max_length: int,
    learning_rate: float,
    max_new_tokens: int,
    threads: int,
) -> RunConfig:
    """The recipe with every `auto` replaced by what it means here."""
    evaluation = config.eval
    generate = evaluation.generate.model_copy(update={"max_new_tokens": max_new_tokens})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"max_length": max_length}),
            "optim": config.optim.model_copy(update={"lr": learning_rate}),
            "eval": evaluation.model_copy(
                update={"metric": _metric(config, source), "generate": generate}
            ),
            "runtime": config.runtime.model_copy(
                update={"device": base.model.device.type, "threads": threads}
            ),
        }
    )


def _set_threads(config: RunConfig, base: FrozenBase) -> int:
    """The compute threads of this process; `run.train` puts the old number back.

    Why one for small bases: a second thread gains little on them, and on cores that others use as
    well (a server) threads spin waiting for each other, which was up to ten times slower.
    """
    import torch

    from polygraft.trainer.methods import SMALL_BASE_PARAMETERS

    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    elif base.model.num_parameters() < SMALL_BASE_PARAMETERS:
        torch.set_num_threads(1)
    return int(torch.get_num_threads())


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch sees no CUDA device.", item="runtime.device", hint="Use auto.")
    return wanted
