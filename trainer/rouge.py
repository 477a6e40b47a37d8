"""ROUGE-1, -2 and -L by rouge-score, and beside them what they would be without clipping.

rouge-score counts an n-gram of the answer at most as often as the reference has it. Without that
clipping "cold cold cold cold" would be perfectly precise against "it is cold outside"; a model that
is rewarded for unclipped ROUGE learns to do so. The gap between both shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from polygraft.trainer.score import Score, mean_score

KINDS = ("rouge1", "rouge2", "rougeL")
_WORDS = {"rouge1": 1, "rouge2": 2}


def rouge_scores(texts: Sequence[str], references: Sequence[str]) -> list[Score]:
    """F1 of each kind, then as details precision, recall and unclipped precision."""
    scorer = rouge_scorer(KINDS)
    rows = [scorer.score(ref, text) for text, ref in zip(texts, references, strict=True)]
    settings = f"stem:yes|agg:mean|version:rouge-score-{version('rouge-score')}"
    scores = [
        mean_score(kind, [row[kind].fmeasure for row in rows], f"{kind}|f1|{settings}")
        for kind in KINDS
    ]
    for kind in KINDS:
        for part in ("precision", "recall"):
            values = [getattr(row[kind], part) for row in rows]
            signature = f"{kind}|{part}|{settings}"
            scores.append(mean_score(f"{kind}_{part}", values, signature, is_detail=True))
    for kind, count in _WORDS.items():
        pairs = zip(texts, references, strict=True)
        values = [unclipped_precision(text, reference, count) for text, reference in pairs]
        signature = f"{kind}|precision without clipping|{settings}"
        scores.append(mean_score(f"{kind}_unclipped", values, signature, is_detail=True))
    return scores


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L F1, mean over rows, in percent."""
    scorer = rouge_scorer(("rougeL",))
    pairs = zip(texts, references, strict=True)
    rows = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]
    return 100.0 * float(sum(rows)) / len(rows)


def unclipped_precision(text: str, reference: str, words: int) -> float:
    """Share of the n-grams of `text` that stand anywhere in `reference`, however often."""
    said, known = _grams(text, words), set(_grams(reference, words))
    return sum(gram in known for gram in said) / len(said) if said else 0.0


def _grams(text: str, words: int) -> list[tuple[str, ...]]:
    tokens = _tokenizer().tokenize(text)
    return [tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)]


@cache
def _tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@cache
def rouge_scorer(kinds: tuple[str, ...]) -> Any:
    """A scorer of these kinds, stemming."""
    # Why here: rouge-score brings nltk, two seconds that only a scoring command should pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)
