"""Precision, recall, F1 and confusion equal scikit-learn's on a thousand random cases."""

import random

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from polygraft.trainer.classification import accuracy, classify

INVALID = "<other>"


def cases(count: int) -> list[tuple[list[str], list[str], list[str]]]:
    """(labels, texts, references) of every size, with invalid answers and labels nobody says."""
    source = random.Random(5)
    made = []
    for _ in range(count):
        labels = [f"label {i}" for i in range(source.randint(2, 6))]
        size = source.randint(2 * len(labels), 40)
        references = source.choices(labels, k=size)
        texts = [
            source.choice([ref, f" {ref} ", source.choice(labels), INVALID]) for ref in references
        ]
        made.append((labels, texts, references))
    return made


def test_a_thousand_cases_equal_scikit_learn() -> None:
    for number, (labels, texts, references) in enumerate(cases(1000)):
        found = classify(texts, references, labels)
        assert found is not None
        said = [text.strip() for text in texts]
        wanted = confusion_matrix(references, said, labels=[*labels, INVALID])
        assert np.array_equal(np.array(found.confusion), wanted[: len(labels)])
        options = {"labels": labels, "zero_division": 0.0}
        by_class = np.array(precision_recall_fscore_support(references, said, **options))
        mine = np.array([[c.precision, c.recall, c.f1, c.support] for c in found.by_class()]).T
        assert mine[:3] == pytest.approx(100 * by_class[:3])
        assert mine[3] == pytest.approx(by_class[3])
        values = {score.metric: score.value for score in found.scores()}
        for average in ("macro", "micro") if number % 5 == 0 else ():  # they take long
            rates = precision_recall_fscore_support(references, said, average=average, **options)
            names = [f"{average}_{name}" for name in ("precision", "recall", "f1")]
            assert [values[name] for name in names] == pytest.approx([100 * r for r in rates[:3]])
        assert values["invalid_rate"] == pytest.approx(100 * said.count(INVALID) / len(said))
        assert accuracy(texts, references).value == pytest.approx(
            100 * np.mean([a == b for a, b in zip(said, references, strict=True)])
        )


def test_texts_are_no_labels() -> None:
    assert classify(["a"] * 30, [f"text {i}" for i in range(30)]) is None
    assert classify(["a", "b"], ["a", "b"]) is None
    assert classify(["a"] * 4, ["a", "b", "a", "c"], ["a", "b"]) is None
    found = classify(["a", "b", "x", "a"], ["a", "b", "b", "a"])
    assert found is not None
    assert (found.labels, found.confusion) == (("a", "b"), ((2, 0, 0), (0, 1, 1)))
