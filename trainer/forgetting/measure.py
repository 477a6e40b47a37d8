"""Asks a base for its old skills: before a change, with it attached, and with it detached.

The proof that a detached change leaves the base as it was does not go by answers, which may be
equal by luck, but by every logit of every row, to the bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polygraft.trainer.collate import Collator
from polygraft.trainer.encode import encode_examples
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.forgetting.general import General
from polygraft.trainer.forgetting.record import Forgetting, make_skills
from polygraft.trainer.local import asker, open_adapter
from polygraft.trainer.source import build_recipe

if TYPE_CHECKING:
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.methods.adapted import Adapted

BATCH_ROWS = 32


@dataclass(frozen=True)
class Knowledge:
    """What a base answered."""

    hits: tuple[bool, ...]
    logits_sha256: str
    """Over the logits of all rows, prompt and right answer, in order."""


def forget(path: Path, general: General, base_path: str | None = None) -> Forgetting:
    """Measure a run or adapter directory. Raises what reading it raises."""
    opened = open_adapter(path, base_path)
    before = ask_base(opened.base, general)
    return with_change(path.name, opened.base, opened.attach(), general, before)


def with_change(
    name: str,
    base: FrozenBase,
    adapted: Adapted,
    general: General,
    before: Knowledge,
    *,
    answers_detached: bool = True,
) -> Forgetting:
    """Attached and detached, beside what the same base knew `before` the change was made.

    `answers_detached=False` does not ask a detached base whose logits are those of before: it
    would say the same.
    """
    attached = _hits(base, adapted, general)
    with adapted.disable_adapter():
        digest = _logits_sha256(base, general)
        if answers_detached or digest != before.logits_sha256:
            detached = Knowledge(_hits(base, None, general), digest)
        else:
            detached = before
    names = [row.group for row in general.rows]
    *skills, total = make_skills(names, before.hits, attached, detached.hits)
    return Forgetting(
        change=name,
        base=base.name,
        general=general.name,
        skills=tuple(skills),
        total=total,
        bit_equal=detached.logits_sha256 == before.logits_sha256,
    )


def ask_base(base: FrozenBase, general: General) -> Knowledge:
    """The base as it is now."""
    if base.tokenizer.chat_template is None:
        raise RecipeError(
            "the base has no chat template to ask the general rows with.", item="forgetting"
        )
    return Knowledge(_hits(base, None, general), _logits_sha256(base, general))


def _hits(base: FrozenBase, adapted: Adapted | None, general: General) -> tuple[bool, ...]:
    answers = asker(base, adapted)(general.prompt, general.rows)
    pairs = zip(answers, general.rows, strict=True)
    return tuple(answer.text.strip() == row.completion.strip() for answer, row in pairs)


@torch.no_grad()
def _logits_sha256(base: FrozenBase, general: General) -> str:
    """One digest over every logit: their bytes would not fit into memory for a large base."""
    recipe = build_recipe(general.prompt, base.tokenizer, base.configured_eos)
    encoded = encode_examples(general.rows, recipe, base.tokenizer)
    ordered = sorted(encoded, key=lambda row: len(row.input_ids))
    collate = Collator(base.eos_token_ids[0])
    was_training = base.model.training
    base.model.train(False)
    total = hashlib.sha256()
    try:
        for start in range(0, len(ordered), BATCH_ROWS):
            batch = ordered[start : start + BATCH_ROWS]
            inputs = {name: value.to(base.model.device) for name, value in collate(batch).items()}
            del inputs["labels"]
            logits = base.model(**inputs).logits.cpu().contiguous()
            total.update(logits.view(torch.uint8).numpy().data)
    finally:
        base.model.train(was_training)
    return total.hexdigest()
