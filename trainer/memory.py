"""The memory of a training step by kind: predicted without any, and measured.

The prediction runs the step on tensors that have shapes but no content (torch's fake tensors), so
it knows the very operators, saved tensors and batch of the run; nothing is a formula for one
architecture. The measurement asks torch's profiler, which sees the allocator and knows no kinds.
"""

# mypy: allow-untyped-calls
# (torch's modes and hooks have no annotations)

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Batch = Mapping[str, Any]
MakeOptimizer = Callable[[nn.Module], Any]
KINDS = ("weights", "gradients", "optimizer", "activations", "temporary")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of each kind where it is largest in a step, and of all together at the peak.

    `activations` are tensors kept for the backward pass, `temporary` is everything else. The
    kinds are not at their largest at once, so `peak` is below their sum.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    peak: int


def predict(
    model: nn.Module, make_optimizer: MakeOptimizer, batch: Batch, *, bf16: bool = False
) -> MemoryUse:
    """What the second step on `batch` will take; the first has no optimizer states yet.

    `bf16` is for a forward pass under autocast.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        shadow = copy.deepcopy(model)
        inputs = {name: copy.deepcopy(value) for name, value in batch.items()}
    with fake:
        optimizer = make_optimizer(shadow)
        _step(shadow, optimizer, inputs, bf16)
        with _LiveMemory(shadow, optimizer) as live:
            _step(shadow, optimizer, inputs, bf16)
    return MemoryUse(**live.largest, peak=live.peak)


def measure(
    model: nn.Module, make_optimizer: MakeOptimizer, batch: Batch, *, bf16: bool = False
) -> int:
    """Peak bytes of a real step, weights and optimizer states included.

    The step changes the model: give a copy, or a model that is no longer needed.
    """
    from torch.profiler import ProfilerActivity, profile

    optimizer = make_optimizer(model)
    _step(model, optimizer, batch, bf16)
    if next(model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        _step(model, optimizer, batch, bf16)
        return torch.cuda.max_memory_allocated()
    static = sum(size for _, size in _static(model, optimizer))
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        recorded.__enter__()
    try:
        _step(model, optimizer, batch, bf16)
    finally:
        with _silent_stderr():
            recorded.__exit__(None, None, None)
    profiler: Any = recorded.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return static + peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what C++ writes: torch's profiler tells its start and its end, and cannot be asked
    not to."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _step(model: nn.Module, optimizer: Any, batch: Batch, bf16: bool) -> None:
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _static(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, int]]:
    """(kind, bytes) of each distinct storage that outlives a step."""
    seen: set[int] = set()
    states = (v for state in optimizer.state.values() for v in state.values())
    kept = [("weights", t) for t in (*model.parameters(), *model.buffers(), *_start(model))]
    kept += [("optimizer", v) for v in states if isinstance(v, Tensor)]
    for kind, tensor in kept:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            yield kind, storage.nbytes()


def _start(model: nn.Module) -> list[Tensor]:
    """What a method keeps beside the weights, as to go back to."""
    kept = getattr(model, "kept_tensors", None)
    return list(kept()) if kept is not None else []


class _LiveMemory(TorchDispatchMode):
    """Follows every storage from its first tensor to its end, by kind."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        super().__init__()
        self.now = dict.fromkeys(KINDS, 0)
        for kind, size in _static(model, optimizer):
            self.now[kind] += size
        self.largest = dict(self.now)
        self.peak = sum(self.now.values())
        self._model = model
        self._kinds: dict[int, str] = {}
        self._refs: dict[int, Any] = {}
        kept = [*model.parameters(), *model.buffers(), *_start(model)]
        kept += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        self._kept = {tensor.untyped_storage()._cdata for tensor in kept}

    @contextmanager
    def _watching(self) -> Iterator[None]:
        trained = [p for p in self._model.parameters() if p.requires_grad]
        handles = [
            p.register_post_accumulate_grad_hook(lambda p: self._rename(p.grad, "gradients"))
            for p in trained
        ]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __enter__(self) -> _LiveMemory:
        self._watch = self._watching()
        self._watch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watch.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._kept or key in self._kinds:
            return
        size = storage.nbytes()
        self._kinds[key] = "temporary"
        self.now["temporary"] += size
        self._refs[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.peak = max(self.peak, sum(self.now.values()))
        self._grow("temporary")

    def _gone(self, key: int, size: int) -> None:
        self.now[self._kinds.pop(key)] -= size
        self._refs.pop(key)

    def _saved(self, tensor: Tensor) -> Tensor:
        self._rename(tensor, "activations")
        return tensor

    def _rename(self, tensor: Tensor | None, kind: str) -> None:
        if tensor is None:
            return
        storage = tensor.untyped_storage()
        self._see(storage)
        key = storage._cdata
        if key in self._kinds:
            self.now[self._kinds[key]] -= storage.nbytes()
            self.now[kind] += storage.nbytes()
            self._kinds[key] = kind
            self._grow(kind)

    def _grow(self, kind: str) -> None:
        self.largest[kind] = max(self.largest[kind], self.now[kind])
