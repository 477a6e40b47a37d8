"""Copies of adapters to a device, beside its steps."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_SLICE_BYTES = 8 << 20
_POLL_SECONDS = 0.0005


class AdapterCopies:
    """Copies from the host in slices of pinned memory, on a stream of their own.

    Belongs to one loader thread, which waits for its copies; the engine's thread and stream do not.
    On a CPU the same slices are copied at once.
    """

    def __init__(self, device: torch.device, *, slice_bytes: int = _SLICE_BYTES) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slices = [
            torch.empty(slice_bytes, dtype=torch.uint8, pin_memory=self._stream is not None)
            for _ in range(2)
        ]
        self._in_flight: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target: contiguous, on the device; source: of its shape, on the host. Under way when it
        returns; see `finish`."""
        flat, there = source.to(target.dtype).reshape(-1), target.view(-1)
        count = self._slices[0].numel() // target.element_size()
        for start in range(0, flat.numel(), count):
            part = flat[start : start + count]
            staged = self._next_slice(part)
            with self._on_stream():
                there[start : start + part.numel()].copy_(staged, non_blocking=True)
            self._in_flight[self._turn] = self._record()

    def place(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """A new tensor on the device, of floating point numbers in `dtype`."""
        dtype = dtype if source.is_floating_point() else source.dtype
        with self._on_stream():  # memory that no earlier work of the steps' stream may still use
            target = torch.empty(source.shape, dtype=dtype, device=self._device)
        if self._stream is not None:
            target.record_stream(torch.cuda.current_stream(self._device))
        self.copy(target, source)
        return target

    def finish(self) -> None:
        """Wait until everything has arrived, by asking now and then."""
        _await(self._record())

    def _next_slice(self, part: Tensor) -> Tensor:
        """`part` in pinned memory, once what stood there has been copied."""
        self._turn = 1 - self._turn
        _await(self._in_flight[self._turn])
        size = part.numel() * part.element_size()
        staged = self._slices[self._turn][:size].view(part.dtype)
        staged.copy_(part)
        return staged

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _record(self) -> torch.cuda.Event | None:
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


def _await(event: torch.cuda.Event | None) -> None:
    while event is not None and not event.query():  # type: ignore[no-untyped-call]
        time.sleep(_POLL_SECONDS)
