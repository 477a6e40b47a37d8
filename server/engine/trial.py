"""One low-rank update, computed apart from any sequence, to be compared with PEFT's formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from polygraft.server.engine.batch_builder import BatchBuilder
from polygraft.server.engine.messages import AdapterShare
from polygraft.server.engine.sites import Site

T = TypeVar("T")


@torch.inference_mode()
def update_of(
    sites: Sequence[Site], builder: BatchBuilder, adapter: AdapterShare, x: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the adapter adds to the outputs of these modules and of those that share their input.

    x: module name -> [num_rows, in_features], the input of its whole site. Returns module name ->
    [num_rows, out_features]. Engine thread only.
    """
    added: dict[str, Tensor] = {}
    for site in sites:
        inputs = next((x[name] for name in site.names if name in x), None)
        if inputs is None:
            continue
        there = inputs.to(builder.device)
        y = there.new_zeros(len(inputs), site.shape.out_features)
        for update in builder.updates_for((adapter,), len(inputs)):
            update.add_(site.index, there, y)
        y = y.to(inputs.device)
        for z, name in enumerate(site.names):
            low, high = site.shape.bounds(z)
            added[name] = y[:, low:high]
    return added


def fulfil(result: Future[T], work: Callable[[], T]) -> None:
    """Put what `work` returns or raises into `result`: the engine goes on in any case."""
    try:
        result.set_result(work())
    except Exception as error:
        result.set_exception(error)
