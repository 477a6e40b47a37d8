"""Scores equal those of rouge-score and sacrebleu called directly."""

import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from polygraft.trainer.data import Example
from polygraft.trainer.generate import Answer
from polygraft.trainer.metrics import exact_match, repetition, rouge_l, score_answers
from polygraft.trainer.score import difference, mean_score, with_interval
from polygraft.trainer.scoring import one_word_repeated

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


def test_precision_and_recall_equal_rouge_score(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = [scorer.score(target=ref, prediction=text) for text, ref in pairs]
    values = scores_of(pairs)
    for kind in ("rouge1", "rouge2", "rougeL"):
        for part in ("precision", "recall"):
            expected = 100 * sum(getattr(row[kind], part) for row in rows) / len(rows)
            assert values[f"{kind}_{part}"] == pytest.approx(expected, abs=1e-9)


def test_clipping_is_what_a_repeated_word_fails_at() -> None:
    values = scores_of([("cold cold cold cold", "it is cold outside")])
    assert (values["rouge1_precision"], values["rouge1_unclipped"]) == (25.0, 100.0)
    rows = [Example(str(i), "g", {}, f"the {i} cat sat on the mat", "here") for i in range(9)]
    word = one_word_repeated(rows)
    clipped, unclipped = word.value("rouge1_precision"), word.value("rouge1_unclipped")
    assert unclipped == 100.0
    assert clipped is not None
    assert clipped < 30


def test_intervals_of_bleu_are_those_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    answers = [Answer([1], text, True) for text, _ in pairs]
    scores = {s.metric: s for s in score_answers(answers, [ref for _, ref in pairs])}
    bleu = sacrebleu.metrics.BLEU().corpus_score(
        [text for text, _ in pairs], [[ref for _, ref in pairs]], n_bootstrap=2000
    )
    low, high = scores["bleu"].interval or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(bleu._mean)
    low, high = scores["exact_match"].interval or (0.0, 0.0)
    assert low < (scores["exact_match"].value or 0) < high


def test_repetition_counts_what_was_said_before() -> None:
    assert repetition("a b c d") == repetition("a b") == 0.0
    assert repetition("a b c d a b c d a b c d") == pytest.approx(1 - 4 / 9)


def test_the_difference_is_paired_and_its_interval_smaller_for_it() -> None:
    source = random.Random(2)
    hard = [source.random() for _ in range(60)]
    worse = mean_score("m", hard, "m")
    better = mean_score("m", [value + 0.05 + 0.01 * source.random() for value in hard], "m")
    paired = difference(better, worse)
    assert paired is not None
    assert paired.value == pytest.approx((better.value or 0) - (worse.value or 0))
    low, high = paired.interval or (0.0, 0.0)
    assert 4 < low < high < 7
    alone = with_interval(better).interval or (0.0, 0.0)
    assert alone[1] - alone[0] > 5 * (high - low)
    assert difference(better, mean_score("m", [0.1], "m")) is None


def test_rows_of_a_group_are_drawn_together() -> None:
    rows = [float(i // 10 % 2) for i in range(400)]
    groups = [f"g{i // 10}" for i in range(400)]
    by_row = with_interval(mean_score("m", rows, "m")).interval or (0.0, 0.0)
    by_group = with_interval(mean_score("m", rows, "m"), groups).interval or (0.0, 0.0)
    assert by_group[1] - by_group[0] > 2 * (by_row[1] - by_row[0])


def test_bleu_of_short_references_says_nothing() -> None:
    values = scores_of([("yes", "yes"), ("no", "no")])
    assert (values["bleu"], values["exact_match"]) == (None, 100.0)


def test_exact_match_ignores_outer_white_space_only() -> None:
    assert exact_match([" a b ", "a  b", "A b"], ["a b"] * 3) == pytest.approx(100 / 3)


def test_stop_rate_and_length_ratio() -> None:
    values = scores_of([("a b c", "a b"), ("a", "a b")], stopped=False)
    assert (values["stop_rate"], values["length_ratio"]) == (0.0, 100.0)
