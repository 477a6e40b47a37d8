"""Scores of generated texts against references, as percentages, with their signatures.

ROUGE is rouge-score's, BLEU is sacrebleu's: nothing is re-implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polygraft.trainer.generate import Answer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
MIN_BLEU_WORDS = 4
"""Mean reference length below which BLEU says nothing: one-word answers score 0 when all right."""


@dataclass(frozen=True)
class Score:
    """One metric over a split. `value` is a percentage, or None where it would mean nothing."""

    metric: str
    value: float | None
    signature: str


def score_answers(answers: Sequence[Answer], references: Sequence[str]) -> list[Score]:
    """Every metric of generated answers, in the order they are shown."""
    texts = [answer.text for answer in answers]
    return [
        *_rouge(texts, references),
        _bleu(texts, references),
        Score("exact_match", exact_match(texts, references), "exact_match|strip|mean"),
        Score("stop_rate", _percent([answer.stopped for answer in answers]), "stop_rate|mean"),
        Score("length_ratio", _length_ratio(texts, references), "length_ratio|words|sum/sum"),
    ]


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L F1, mean over rows, in percent."""
    scorer = _rouge_scorer(("rougeL",))
    rows = [scorer.score(ref, text)["rougeL"].fmeasure for text, ref in _pairs(texts, references)]
    return _percent(rows)


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts equal to their reference without outer white space, in percent."""
    return _percent([text.strip() == ref.strip() for text, ref in _pairs(texts, references)])


def _rouge(texts: Sequence[str], references: Sequence[str]) -> list[Score]:
    scorer = _rouge_scorer(ROUGE_TYPES)
    rows = [scorer.score(reference, text) for text, reference in _pairs(texts, references)]
    settings = f"stem:yes|agg:mean|f1|version:rouge-score-{version('rouge-score')}"
    return [
        Score(kind, _percent([row[kind].fmeasure for row in rows]), f"{kind}|{settings}")
        for kind in ROUGE_TYPES
    ]


def _bleu(texts: Sequence[str], references: Sequence[str]) -> Score:
    from sacrebleu.metrics.bleu import BLEU

    words = sum(len(reference.split()) for reference in references) / len(references)
    if words < MIN_BLEU_WORDS:
        return Score("bleu", None, f"n/a: references average {words:.1f} words")
    bleu = BLEU()
    value = float(bleu.corpus_score(list(texts), [list(references)]).score)
    return Score("bleu", value, f"bleu|{bleu.get_signature()}")


def _length_ratio(texts: Sequence[str], references: Sequence[str]) -> float:
    generated = sum(len(text.split()) for text in texts)
    return 100.0 * generated / max(1, sum(len(reference.split()) for reference in references))


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)


def _pairs(texts: Sequence[str], references: Sequence[str]) -> zip[tuple[str, str]]:
    return zip(texts, references, strict=True)


@cache
def _rouge_scorer(kinds: tuple[str, ...]) -> Any:
    # Why here: rouge-score brings nltk, two seconds that only a scoring command should pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)
