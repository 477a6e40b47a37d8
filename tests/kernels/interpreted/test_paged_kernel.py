"""Paged attention, interpreted, against float64: mixed steps, isolation, a split context."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_support.paged_cases import PagedCase, random_paged_case
from tolerances import relative_error
from torch import Tensor

from polygraft.kernels.lazy_memory import lazy_zeros
from polygraft.kernels.paged import kernel, launch
from polygraft.kernels.paged.tiles import PagedConfig

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # norm-wise
CONFIGS = [
    PagedConfig(16, 16),
    PagedConfig(32, 64),
    PagedConfig(64, 32),
    PagedConfig(16, 16, splits=4, split=32),  # the context is at most 110 positions
    PagedConfig(32, 32, splits=2, split=64),
]

SEED = 54  # a step of several sequences, decodes and chunks


def attend(case: PagedCase, config: PagedConfig, **arguments: object) -> Tensor:
    plan = case.plan(config.rows(case.shape.group))
    return launch.attention(
        case.q, case.keys, case.values, plan, num_tiles=plan.num_tiles, config=config,
        **case.rule, **arguments,
    )  # fmt: skip


def test_the_interpreter_runs_here() -> None:
    assert kernel.INTERPRETED.value


@pytest.mark.parametrize("seed", range(45))
def test_float32_equals_float64(seed: int) -> None:
    case, config = random_paged_case(seed), CONFIGS[seed % len(CONFIGS)]
    assert (attend(case, config) - case.expected()).abs().max() <= 3e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(100, 109))
def test_half_precision_equals_float64(seed: int, dtype: torch.dtype) -> None:
    case, config = random_paged_case(seed, dtype), CONFIGS[seed % len(CONFIGS)]
    found = attend(case, config)
    assert found.dtype == dtype
    assert relative_error(found, case.expected()) <= BOUNDS[dtype]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(config: PagedConfig) -> None:
    case = random_paged_case(SEED)
    together = attend(case, config)
    assert len(case.sequences) > 3
    for index, rows in enumerate(case.sequences):
        alone = attend(case.alone(index), config)
        assert torch.equal(alone, together[rows.start : rows.start + rows.count])


def test_scratch_is_used_again_and_may_hold_anything() -> None:
    case, config = random_paged_case(SEED), CONFIGS[3]
    device = torch.device("cpu")
    scratch = launch.PagedScratch.allocate(len(case.q) + 5, config, case.shape, device)
    scratch.parts.fill_(torch.nan)
    scratch.sums.fill_(torch.nan)
    first = attend(case, config, scratch=scratch)
    assert relative_error(first, case.expected()) <= BOUNDS[torch.float32]
    assert torch.equal(attend(case, config, scratch=scratch), first)


# The interpreter computes with numpy, which warns of what is done on purpose here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sequence_that_is_not_finite_ends_alone(config: PagedConfig, value: float) -> None:
    case = random_paged_case(SEED)
    clean = attend(case, config)
    broken = case.sequences[1]
    case.values[:, case.cells(broken)[0]] = value
    found = attend(case, config)
    own = slice(broken.start, broken.start + broken.count)
    assert not found[own].isfinite().all()
    others = torch.ones(len(found), dtype=torch.bool)
    others[own] = False
    assert torch.equal(found[others], clean[others])


def test_cells_may_lie_beyond_32_bits() -> None:
    case = random_paged_case(5, torch.float16)
    heads, cells, dim = case.keys.shape
    stride = 2**31 // (cells - 1) + 16
    memory = lazy_zeros(
        ((cells - 1) * stride + dim,), dtype=torch.float16, device=torch.device("cpu")
    )
    assert heads == 1
    far = memory.as_strided(case.keys.shape, (0, stride, 1))
    far.copy_(case.keys)
    case.keys = far
    assert relative_error(attend(case, CONFIGS[0]), case.expected()) <= BOUNDS[torch.float16]


def test_tiles_beyond_the_step_are_not_computed() -> None:
    """As in a captured graph, whose grid is that of the largest step."""
    case, config = random_paged_case(SEED), CONFIGS[3]
    plan = case.plan(config.rows(case.shape.group))
    larger = type(plan)(replace(plan.capacity, tiles=plan.num_tiles + 9))
    larger.tiles.fill_(1 << 20)  # of an earlier step
    larger.fill(case.sequences, padding=case.padding)
    found = launch.attention(
        case.q, case.keys, case.values, larger, num_tiles=larger.capacity.tiles, config=config,
        **case.rule,
    )  # fmt: skip
    assert torch.equal(found, attend(case, config))


def test_what_does_not_belong_together_is_refused() -> None:
    case, config = random_paged_case(SEED), CONFIGS[0]
    with pytest.raises(ValueError, match="do not belong together"):
        attend(replace(case, q=case.q[:, :, :5]), config)
    with pytest.raises(ValueError, match="contiguous last axis"):
        attend(replace(case, keys=case.keys.transpose(1, 2).contiguous().transpose(1, 2)), config)
    plan = case.plan(64)
    with pytest.raises(ValueError, match="tiles of 64 rows, but the kernel"):
        launch.attention(
            case.q, case.keys, case.values, plan, num_tiles=1, config=config, **case.rule
        )
