"""Scores equal those of rouge-score and sacrebleu called directly."""

import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from polygraft.trainer.generate import Answer
from polygraft.trainer.metrics import exact_match, rouge_l, score_answers

WORDS = ("ann", "will", "bring", "the", "tents", "to", "a", "lake", "on", "monday", "running")


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    source = random.Random(1)
    texts = [" ".join(source.choices(WORDS, k=source.randint(4, 12))) for _ in range(40)]
    return [(text, text if source.random() < 0.3 else texts[0]) for text in texts]


def scores_of(pairs: list[tuple[str, str]], stopped: bool = True) -> dict[str, float | None]:
    answers = [Answer([1], text, stopped) for text, _ in pairs]
    return {s.metric: s.value for s in score_answers(answers, [ref for _, ref in pairs])}


def test_rouge_equals_rouge_score(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = [scorer.score(target=ref, prediction=text) for text, ref in pairs]
    values = scores_of(pairs)
    for kind in ("rouge1", "rouge2", "rougeL"):
        expected = 100 * sum(row[kind].fmeasure for row in rows) / len(rows)
        assert values[kind] == pytest.approx(expected, abs=1e-9)
    assert values["rougeL"] == rouge_l([t for t, _ in pairs], [r for _, r in pairs])


def test_bleu_equals_sacrebleu_and_carries_its_signature(pairs: list[tuple[str, str]]) -> None:
    direct = sacrebleu.corpus_bleu([t for t, _ in pairs], [[r for _, r in pairs]])
    assert scores_of(pairs)["bleu"] == direct.score
    answers = [Answer([1], text, True) for text, _ in pairs]
    (bleu,) = (s for s in score_answers(answers, [r for _, r in pairs]) if s.metric == "bleu")
    assert bleu.signature == "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def test_bleu_of_short_references_says_nothing() -> None:
    values = scores_of([("yes", "yes"), ("no", "no")])
    assert (values["bleu"], values["exact_match"]) == (None, 100.0)


def test_exact_match_ignores_outer_white_space_only() -> None:
    assert exact_match([" a b ", "a  b", "A b"], ["a b"] * 3) == pytest.approx(100 / 3)


def test_stop_rate_and_length_ratio() -> None:
    values = scores_of([("a b c", "a b"), ("a", "a b")], stopped=False)
    assert (values["stop_rate"], values["length_ratio"]) == (0.0, 100.0)
