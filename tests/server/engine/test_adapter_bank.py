"""Places on the device: taken, filled, given back in every order of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from polygraft.adapters.weights import AdapterWeights, LoraModule
from polygraft.server.engine.adapter_bank import AdapterBank

if TYPE_CHECKING:
    from conftest import TinyBase


def lora(bank: AdapterBank, rank: int) -> AdapterWeights:
    name, (site, z) = next(iter(bank._place_of.items()))
    shape = bank.pools[site].shape
    module = LoraModule(torch.ones(rank, shape.in_features), torch.ones(shape.slices[z], rank), 2.0)
    return AdapterWeights("lora", {name: module})


def soft_prompt(count: int) -> AdapterWeights:
    return AdapterWeights("soft_prompt", prompt_embeddings=torch.ones(count, 48))


@pytest.mark.parametrize(("rank", "rows"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_rank_classes_are_powers_of_two(tiny_base: TinyBase, rank: int, rows: int) -> None:
    bank = tiny_base.harness(pool_rows=256).engine.bank
    assert bank.reserve("new", lora(bank, rank))
    taken = bank.rows("new")
    assert taken is not None
    assert taken.count == rows


def test_a_place_reserved_but_never_filled_is_given_back(tiny_base: TinyBase) -> None:
    bank = tiny_base.harness(virtual_token_rows=20).engine.bank
    bank.free("soft")
    for _ in range(3):  # a leak would refuse the second round
        assert bank.reserve("p", soft_prompt(20))
        assert not bank.reserve("q", soft_prompt(1))
        bank.free("p")
    bank.check_integrity()


def test_full_rows_refuse_for_now_and_too_large_for_ever(tiny_base: TinyBase) -> None:
    bank = tiny_base.harness(pool_rows=64).engine.bank
    for name in list(bank._rows):
        bank.free(name)
    assert bank.num_free_rows == 64
    assert bank.fits(lora(bank, 64)) is None
    assert "65" in (bank.fits(lora(bank, 65)) or "")
    assert bank.reserve("a", lora(bank, 40))
    assert not bank.reserve("b", lora(bank, 1))
    bank.free("a")
    assert bank.reserve("b", lora(bank, 1))
    bank.check_integrity()


def test_rows_of_an_evicted_version_are_zeroed_before_the_next_uses_them(
    tiny_base: TinyBase,
) -> None:
    bank = tiny_base.harness(pool_rows=256).engine.bank
    rows = bank.rows("lora4")
    assert rows is not None
    bank.free("lora4")
    assert bank.reserve("new", lora(bank, 2))
    bank.copy("new", lora(bank, 2))
    new = bank.rows("new")
    assert new is not None
    for pool in bank.pools:
        assert not pool.a[new.row0 + 2 : new.row0 + new.count].any()
        assert not pool.bt[new.row0 + 2 : new.row0 + new.count].any()


def test_loras_fit_together_as_long_as_their_rows_fit_the_pool(tiny_base: TinyBase) -> None:
    bank = tiny_base.harness(pool_rows=96).engine.bank  # blocks of 64 and 32
    assert bank.fits_together([0, 16, 17, 40]) is not None  # 16 + 32 + 64
    for ranks in ([32, 32, 32], [16, 64, 16], [1, 33, 1]):
        assert bank.fits_together([0, *ranks]) is None
        for name in list(bank._rows):
            bank.free(name)
        assert all(bank.reserve(f"{i}", lora(bank, rank)) for i, rank in enumerate(ranks))


def test_an_unknown_module_never_fits(tiny_base: TinyBase) -> None:
    bank = tiny_base.harness().engine.bank
    module = LoraModule(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    assert "lm_head" in (bank.fits(AdapterWeights("lora", {"lm_head": module})) or "")
