"""Log-probabilities, ranks and most likely tokens against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polygraft.server.engine.sampling.logprobs import token_logprob


@settings(deadline=None)
@given(
    size=st.sampled_from([2, 100, 3000]),
    seed=st.integers(0, 1 << 30),
    has_ties=st.booleans(),
    num_top=st.sampled_from([0, 1, 5, 20]),
    data=st.data(),
)
def test_a_tokens_place_in_the_distribution_is_that_of_torch(
    size: int, seed: int, has_ties: bool, num_top: int, data: st.DataObject
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 8
    if has_ties:
        logits = logits.round()
    token = data.draw(st.integers(0, size - 1))
    expected = logits.double().log_softmax(-1)
    order = logits.argsort(descending=True, stable=True)  # equal ones by id
    entry = token_logprob(logits.numpy(), token, num_top)
    assert entry.token_id == token
    assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
    assert entry.rank == order.tolist().index(token) + 1
    assert [top for top, _ in entry.top] == order[:num_top].tolist()
    assert [p for _, p in entry.top] == pytest.approx(expected[order[:num_top]].tolist(), abs=1e-5)


def test_impossible_tokens_rank_last() -> None:
    logits = np.array([1.0, -np.inf, 2.0, -np.inf], dtype=np.float32)
    assert token_logprob(logits, 3, 0).rank == 4
    assert token_logprob(logits, 3, 0).logprob == -np.inf
