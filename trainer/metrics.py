"""Scores of generated texts against references, as percentages, with signatures and intervals.

ROUGE is rouge-score's, BLEU is sacrebleu's: nothing is re-implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polygraft.trainer.classification import Classification, accuracy
from polygraft.trainer.rouge import rouge_l, rouge_scores
from polygraft.trainer.score import RESAMPLES, Score, mean_score, with_interval

if TYPE_CHECKING:
    from polygraft.trainer.generate import Answer

__all__ = ["MIN_BLEU_WORDS", "Score", "exact_match", "repetition", "rouge_l", "score_answers"]

MIN_BLEU_WORDS = 4
"""Mean reference length below which BLEU says nothing: one-word answers score 0 when all right."""
REPEATED_WORDS = 4


def score_answers(
    answers: Sequence[Answer],
    references: Sequence[str],
    *,
    groups: Sequence[str] = (),
    classification: Classification | None = None,
) -> list[Score]:
    """Every metric of generated answers, in the order they are shown.

    `groups` names the group of each row, whose rows are drawn together for the intervals.
    """
    texts = [answer.text for answer in answers]
    scores = rouge_scores(texts, references)
    scores.append(_bleu(texts, references))
    matches = [
        float(text.strip() == ref.strip()) for text, ref in zip(texts, references, strict=True)
    ]
    scores.append(mean_score("exact_match", matches, "exact_match|strip|mean"))
    if classification is not None:
        scores += [accuracy(texts, references), *classification.scores()]
    stopped = [float(answer.stopped) for answer in answers]
    scores.append(mean_score("stop_rate", stopped, "stop_rate|mean"))
    ratio = _length_ratio(texts, references)
    scores.append(Score("length_ratio", ratio, "length_ratio|words|sum/sum"))
    repeated = [repetition(text) for text in texts]
    signature = f"repetition|{REPEATED_WORDS}-grams of words|1 - distinct/all|mean"
    scores.append(mean_score("repetition", repeated, signature))
    return [score if score.is_detail else with_interval(score, groups) for score in scores]


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts equal to their reference without outer white space, in percent."""
    pairs = list(zip(texts, references, strict=True))
    return 100.0 * sum(text.strip() == reference.strip() for text, reference in pairs) / len(pairs)


def repetition(text: str) -> float:
    """Share of 4-grams of words that stood in the text before (seq-rep-4, Welleck et al. 2020)."""
    words = text.split()
    grams = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _bleu(texts: Sequence[str], references: Sequence[str]) -> Score:
    from sacrebleu.metrics.bleu import BLEU

    words = sum(len(reference.split()) for reference in references) / len(references)
    if words < MIN_BLEU_WORDS:
        return Score("bleu", None, f"n/a: references average {words:.1f} words")
    bleu, answers, wanted = BLEU(), list(texts), [list(references)]
    value = float(bleu.corpus_score(answers, wanted).score)
    score = Score("bleu", value, f"bleu|{bleu.get_signature()}")
    drawn = BLEU().corpus_score(answers, wanted, n_bootstrap=RESAMPLES)
    return replace(score, interval=(drawn._mean - drawn._ci, drawn._mean + drawn._ci))


def _length_ratio(texts: Sequence[str], references: Sequence[str]) -> float:
    generated = sum(len(text.split()) for text in texts)
    return 100.0 * generated / max(1, sum(len(reference.split()) for reference in references))
