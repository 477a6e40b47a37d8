"""Whether a server renders, encodes and answers rows as the trainer did: asked, not assumed.

Catches what the self-test of an upload cannot see, because that starts from token ids: another
chat template, a doubled or missing BOS, virtual tokens in another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polygraft.adapters.errors import AdapterIncompatible
from polygraft.adapters.probes import NUM_GREEDY
from polygraft.adapters.prompt import PromptRecipe
from polygraft.client import Client, Generation
from polygraft.trainer.push.witness import Witness

EXACT_MARGIN = 2e-3
"""A lead in logits that decides which token comes, where the server computes in float32."""
ROUNDED_MARGIN = 0.5
"""In other dtypes; the server's self-test holds errors themselves against tighter limits."""


@dataclass(frozen=True)
class Parity:
    """What was equal."""

    prompts: int
    prompt_tokens: int
    greedy_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts through the server: {self.prompt_tokens} token ids and "
            f"{self.greedy_tokens} greedy tokens, all equal"
        )


def check_parity(
    client: Client, digest: str, witnesses: Sequence[Witness], recipe: PromptRecipe | None
) -> Parity:
    """Ask a version, which no alias names yet. Raises AdapterIncompatible (PARITY_FAILED).

    Where its `recipe` says so, the server stops although the trainer's record goes on.
    """
    margin = EXACT_MARGIN if client.model().dtype == "float32" else ROUNDED_MARGIN
    compared = 0
    for number, witness in enumerate(witnesses, 1):
        where = f"prompt {number} of {len(witnesses)}"
        token_ids = client.tokenize(adapter=digest, **witness.request)
        if token_ids != witness.token_ids:
            raise _refusal(f"{where} {_first_difference(witness.token_ids, token_ids)}")
        answer = client.generate(
            adapter=digest,
            temperature=0.0,
            max_output_tokens=NUM_GREEDY,
            ignore_eos=True,
            return_token_ids=True,
            **witness.request,
        )
        compared += _compare_greedy(witness, answer, margin, recipe, where)
    tokens = sum(len(witness.token_ids) for witness in witnesses)
    return Parity(len(witnesses), tokens, compared)


def _compare_greedy(
    witness: Witness, answer: Generation, margin: float, recipe: PromptRecipe | None, where: str
) -> int:
    """How many tokens were compared: all up to a lead so small that rounding may turn it."""
    choice = answer.choices[0]
    for step, (wanted, lead) in enumerate(
        zip(witness.greedy_ids, witness.greedy_margin, strict=True)
    ):
        if lead < margin:
            return step
        if step >= len(choice.token_ids):
            if choice.finish_reason == "stop" and _may_stop(recipe, wanted):
                return step
            raise _refusal(f"{where}: the server ended its answer before token {step + 1}")
        if choice.token_ids[step] != wanted:
            raise _refusal(
                f"{where}: token {step + 1} of the greedy answer is {choice.token_ids[step]}, the "
                f"trainer saw {wanted}, {lead:.3g} ahead of the next one"
            )
    return len(witness.greedy_ids)


def _may_stop(recipe: PromptRecipe | None, wanted: int) -> bool:
    """A stop token is not shown; a stop sequence may end an answer after any token."""
    return recipe is not None and (wanted in recipe.stop_token_ids or bool(recipe.stop_sequences))


def _first_difference(wanted: Sequence[int], found: Sequence[int]) -> str:
    pairs = zip(wanted, found, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))
    shown = [" ".join(map(str, ids[place : place + 3])) or "the end" for ids in (wanted, found)]
    return (
        f"is encoded to {len(found)} token ids, in training it had {len(wanted)}; they part at "
        f"token {place + 1}, {shown[1]} instead of {shown[0]}"
    )


def _refusal(what: str) -> AdapterIncompatible:
    return AdapterIncompatible(
        f"the server does not answer as the trainer did: {what}.",
        reason="PARITY_FAILED",
        item="parity",
        hint="Compare the versions of both, and the chat template and tokenizer of the two bases. "
        "No alias was moved.",
    )
