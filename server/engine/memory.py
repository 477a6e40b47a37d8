"""Give back the memory of the checkpoint once the engine has its own copies of the weights."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch
from torch import nn


@torch.no_grad()
def release_checkpoint(model: nn.Module) -> None:
    """Copy what is left of the model's own tensors, so that nothing refers to the checkpoint.

    Weights of the checkpoint's dtype are views of the mapped file: one of them, the embedding,
    would keep all of it in memory. Converted weights were freed when they were packed, but lie in
    the allocator's arenas of the threads that loaded them, where nobody allocates again.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.untyped_storage().nbytes() > tensor.element_size():  # not a stand-in
            tensor.data = tensor.data.clone()
    return_freed()


def return_freed() -> None:
    """Give what was freed back to the system; else it stays with the allocator's arena of the
    thread that took it, where nobody may ever allocate again. glibc only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
