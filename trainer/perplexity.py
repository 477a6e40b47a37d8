"""How likely base and adapter find held-out text: what plain text is scored by."""

from __future__ import annotations

import math

from polygraft.trainer.collate import Collator
from polygraft.trainer.encode import encode_examples
from polygraft.trainer.evaluation import completion_loss
from polygraft.trainer.methods.adapted import Adapted
from polygraft.trainer.prepare import Prepared
from polygraft.trainer.score import Score
from polygraft.trainer.scoring import Subject
from polygraft.trainer.source import build_recipe

SIGNATURE = "perplexity|exp of the mean loss per token|end token included"
BATCH_ROWS = 16


def score_likelihood(prepared: Prepared, peft_model: Adapted) -> list[Subject]:
    """Perplexity per token of base and adapter on the test split."""
    base, source = prepared.base, prepared.source
    recipe = build_recipe(source.prompt, base.tokenizer)
    rows = encode_examples(source.splits.test, recipe, base.tokenizer)
    collator = Collator(base.eos_token_ids[0])

    def subject(name: str) -> Subject:
        loss = completion_loss(peft_model, rows, collator, BATCH_ROWS)
        score = Score("perplexity", math.exp(loss), SIGNATURE)
        return Subject(name, source.prompt, [], [score], len(rows))

    with peft_model.disable_adapter():
        alone = subject("base")
    return [alone, subject("adapter")]
