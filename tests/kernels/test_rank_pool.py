"""Rows of the pool are zero unless a version wrote them, and cost no memory before that."""

from __future__ import annotations

import psutil
import torch

from polygraft.kernels.rank_pool import SitePool, SiteShape

CPU = torch.device("cpu")


def test_what_was_written_is_zero_again_when_it_is_cleared() -> None:
    pool = SitePool(SiteShape(8, (4, 6)), 32, dtype=torch.float32, device=CPU)
    pool.write(16, 1, torch.ones(3, 8), torch.ones(6, 3), 0.5)
    assert pool.a.sum() == 3 * 8
    assert pool.bt.sum() == 6 * 3
    pool.clear(0, 16)
    assert pool.scale[16:19, 1].tolist() == [0.5] * 3, "another block"
    for _ in range(2):
        pool.clear(16, 16)
        assert not pool.a.any()
        assert not pool.bt.any()
        assert not pool.scale.any()
    pool.write(16, 0, torch.ones(1, 8), torch.ones(4, 1), 1.0)
    pool.clear(16, 16)
    assert not pool.a.any()


def test_clearing_rows_that_nobody_wrote_takes_no_memory() -> None:
    shape, rows = SiteShape(1 << 12, (1 << 12,)), 1 << 14
    process = psutil.Process()
    pool = SitePool(shape, rows, dtype=torch.float32, device=CPU)  # half a GiB if it were touched
    before = process.memory_info().rss
    pool.clear(0, rows)
    assert process.memory_info().rss - before < 1 << 24
