"""Answers rows with a model in this process, for scoring without a server."""

from __future__ import annotations

from collections.abc import Sequence

from polygraft.adapters.prompt import encode_variables
from polygraft.trainer.data import Example
from polygraft.trainer.frozen_base import FrozenBase
from polygraft.trainer.generate import Answer, GreedyGenerator
from polygraft.trainer.scoring import Ask, Prompt
from polygraft.trainer.source import build_recipe


def asker(base: FrozenBase, generator: GreedyGenerator) -> Ask:
    """Ask a generator by rendering rows as the server would."""

    def ask(prompt: Prompt, rows: Sequence[Example]) -> list[Answer]:
        recipe = build_recipe(prompt, base.tokenizer, base.configured_eos)
        return generator([encode_variables(recipe, row.variables, base.tokenizer) for row in rows])

    return ask


def base_generator(
    base: FrozenBase, max_new_tokens: int, stop_sequences: tuple[str, ...] = ()
) -> GreedyGenerator:
    """The base alone."""
    return GreedyGenerator(
        model=base.model,
        tokenizer=base.tokenizer,
        eos_token_ids=base.eos_token_ids,
        max_new_tokens=max_new_tokens,
        stop_sequences=stop_sequences,
    )
