"""Orphan ids: vocabulary entries that training never asks the model to say.

With frozen embeddings no adapter can bring such an id back, so a build that leaves a printable
one behind fails.
"""

import random
from collections import Counter

from transformers import PreTrainedTokenizerFast

from polygraft.trainer.base.corpus import documents
from polygraft.trainer.base.encoding import Encoder
from polygraft.trainer.base.preset import Preset
from polygraft.trainer.base.tokenizer import printable_ids

SAMPLE = 60_000
LEAST = 25


def target_counts(
    tokenizer: PreTrainedTokenizerFast, preset: Preset, seed: int, sample: int = SAMPLE
) -> Counter[int]:
    """How often each id is a full-weight target in `sample` documents."""
    rng = random.Random(f"orphans/{seed}")
    encoder = Encoder(tokenizer, preset)
    counts: Counter[int] = Counter()
    for item in encoder.encode(list(documents(f"orphans/{seed}", sample)), rng):
        counts.update(
            token_id
            for token_id, weight in zip(item.ids, item.weights, strict=True)
            if weight == 1.0
        )
    return counts


def orphan_ids(
    tokenizer: PreTrainedTokenizerFast, preset: Preset, seed: int, sample: int = SAMPLE
) -> list[int]:
    """Printable ids with fewer targets than `LEAST` per `SAMPLE` documents."""
    counts = target_counts(tokenizer, preset, seed, sample)
    least = LEAST * sample / SAMPLE
    return [token_id for token_id in printable_ids(tokenizer) if counts[token_id] < least]
