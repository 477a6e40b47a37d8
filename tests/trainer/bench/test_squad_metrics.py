"""SQuAD's metrics by hand: what its paper says of articles, punctuation and shared words."""

import sys

import pytest

from polygraft.trainer.bench.squad_metrics import (
    available_to_definitions,
    compute_exact,
    compute_f1,
)


def test_exact_ignores_case_articles_and_punctuation() -> None:
    assert compute_exact("The Eiffel Tower!", "eiffel  tower") == 1
    assert compute_exact("Paris", "paris france") == 0


@pytest.mark.parametrize(
    ("wanted", "said", "f1"),
    [
        ("the old red boat", "a red boat", 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3)),
        ("go go stop", "go", 0.5),  # one of the two counts
        ("Ada", "Ben", 0.0),
        ("the", "an", 1.0),  # nothing left of either
        ("the", "Ada", 0.0),
    ],
)
def test_f1_over_words(wanted: str, said: str, f1: float) -> None:
    assert compute_f1(wanted, said) == pytest.approx(f1)


def test_the_old_name_is_there_only_while_a_definition_is_read() -> None:
    with available_to_definitions():
        import transformers.data.metrics.squad_metrics as found

        assert found.compute_f1("Ada", "Ada") == 1.0
    assert "transformers.data.metrics" not in sys.modules
