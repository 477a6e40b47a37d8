"""The engine's own update of one layer against PEFT's formula, for an adapter without probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.plain_reference import PlainReference
from polygraft.adapters.self_test import Check
from polygraft.server.engine_port import EnginePort

# Norm-wise relative error of an update; A x and B (A x) are both rounded to the dtype.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_NUM_ROWS = 4
_NOT_COMPARED = "what it changes is more than low-rank updates of linear layers, and not compared"


def compare_with_formula(
    files: Mapping[str, Path], kind: str, digest: str, engine: EnginePort, *, timeout: float
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Checks that were passed, and warnings. The version is on the device, and stays there.

    Raises AdapterInvalid (SELF_TEST_FAILED) with the number of the first module that differs.
    """
    reference = PlainReference(files)
    dtype = engine.geometry.torch_dtype
    if kind == "soft_prompt":
        return (_same_rows(engine.bank.prompt(digest), reference.prompt(), dtype),), ()
    if kind == "prefix":
        placed = engine.bank.prefix_of((digest,))[0]
        return (_same_rows(placed, reference.prefix(), dtype),), ()
    if not reference.is_plain:
        return (), (_NOT_COMPARED,)
    generator = torch.Generator().manual_seed(0)
    rows: dict[int, Tensor] = {}  # by width: modules that share an input get the same
    inputs = {}
    for name in reference.modules:
        width = engine.geometry.modules[name].in_features
        if width not in rows:
            rows[width] = torch.randn(_NUM_ROWS, width, generator=generator).to(dtype)
        inputs[name] = rows[width]
    added = engine.try_update(digest, inputs).result(timeout)
    checks = []
    for name, update in added.items():
        expected = reference.update(name, inputs[name]) if name in inputs else None
        checks.append(_near(name, update.double(), expected, BOUNDS[dtype]))
    return tuple(checks), () if checks else (_NOT_COMPARED,)


def _near(name: str, found: Tensor, expected: Tensor | None, bound: float) -> Check:
    """expected: None where the adapter has no update."""
    if expected is None:
        error = float(found.abs().max())
        bound = 0.0
    else:
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    return _checked(f"update of {name}", error, bound)


def _same_rows(placed: Tensor | None, stored: Tensor, dtype: torch.dtype) -> Check:
    assert placed is not None, "a version under test left the device"
    error = float((placed.double() - stored.to(dtype).double()).abs().max())
    return _checked("virtual tokens", error, 0.0)


def _checked(name: str, error: float, bound: float) -> Check:
    check = Check(f"error of the {name}", f"{error:.3g}", f"<= {bound:g}", error <= bound)
    if not check.passed:
        raise AdapterInvalid(
            f"the self-test failed: what the server computes is not PEFT's formula. {check}.",
            reason="SELF_TEST_FAILED",
            item=name,
            found=check.measured,
            allowed=check.allowed,
            hint="Report this adapter: it passed every check of its files.",
        )
    return check
