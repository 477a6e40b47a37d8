"""Everything a run needs before its first step: checked rows, the base, no `auto` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polygraft.trainer.checked_data import check_data
from polygraft.trainer.config import RunConfig
from polygraft.trainer.encode import Encoded
from polygraft.trainer.forgetting.general import General, load_general
from polygraft.trainer.machine import (
    choose_device,
    choose_precision,
    refuse_quantized,
    set_threads,
)
from polygraft.trainer.mixture import Mixed
from polygraft.trainer.processes import join
from polygraft.trainer.progress import Observer
from polygraft.trainer.source import Source

if TYPE_CHECKING:
    from polygraft.adapters.geometry import BaseGeometry
    from polygraft.trainer.frozen_base import FrozenBase


@dataclass(frozen=True)
class Prepared:
    """Data that passed every check, and the base to train on."""

    config: RunConfig
    """With every automatic choice made."""
    source: Source
    train: list[Encoded]
    """With the rows of the mixture."""
    validation: list[Encoded]
    mixed: list[Mixed]
    base: FrozenBase
    geometry: BaseGeometry
    learning_rate: float
    max_new_tokens: int
    general: General | None = None
    """Old skills to ask before and after, where the recipe wants that."""
    warnings: tuple[str, ...] = ()
    """About the data, as the run said them: for its report."""


def prepare(config: RunConfig, observer: Observer) -> Prepared:
    """Load and check the data, then the base; resolve what the recipe left to the trainer."""
    from polygraft.adapters.geometry import describe_base
    from polygraft.trainer.frozen_base import load_frozen_base

    data = check_data(config)
    asked = config.eval.forgetting
    general = load_general(asked) if asked else None
    for note in data.notes:
        observer.note(note)
    for part in data.mixed:
        observer.note(f"mixed in: {len(part.rows)} rows of {part.ingredient.name}")
    device = choose_device(config.runtime.device)
    refuse_quantized(config.method)
    join(device)
    precision = choose_precision(config.runtime.precision, device, observer)
    base = load_frozen_base(
        config.base.path, data.tokenizer, dtype=config.base.dtype, device=device
    )
    threads = set_threads(config, base)
    geometry = describe_base(
        base.model, base.model.config, name=base.name, fingerprint=base.fingerprint
    )
    source, train = data.source, data.splits["train"]
    learning_rate = _learning_rate(config, base)
    max_new_tokens = _max_new_tokens(config, source, train)
    observer.note(
        f"learning rate {learning_rate:g}, judged by {_metric(config, source)}, answers of up to "
        f"{max_new_tokens} tokens"
    )
    return Prepared(
        config=_resolved(
            config, source, base, data.max_length, learning_rate, max_new_tokens, threads, precision
        ),
        source=source.with_limit(max_new_tokens),
        train=data.train,
        validation=data.splits["validation"],
        mixed=data.mixed,
        base=base,
        geometry=geometry,
        learning_rate=learning_rate,
        max_new_tokens=max_new_tokens,
        general=general,
        warnings=tuple(data.notes),
    )


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
    precision: str,
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
                update={
                    "device": base.model.device.type,
                    "threads": threads,
                    "precision": precision,
                }
            ),
        }
    )
