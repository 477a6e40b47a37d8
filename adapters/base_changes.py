"""What an adapter changes of the base besides low-rank updates of linear layers.

Plain data on the host; which tensors of a file become what is decided in `change_checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from polygraft.adapters.low_rank import LoraModule


@dataclass(frozen=True, slots=True)
class TableChange:
    """Of a table W [vocab_size, hidden_size], the input embedding or the output head.

    `weight` takes the place of W (and `bias` that of a head's bias), then `rows` [n, hidden_size]
    those of `token_ids` [n] int64, ascending; `lora` is added: lora_a [rank, hidden_size], lora_b
    [vocab_size, rank].
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    token_ids: Tensor | None = None
    rows: Tensor | None = None
    lora: LoraModule | None = None
    offset: Tensor | None = None  # [vocab_size], added to the logits of a head

    def tensors(self) -> Iterator[Tensor]:
        """Those that take memory."""
        lora = (self.lora.lora_a, self.lora.lora_b) if self.lora else ()
        for tensor in (self.weight, self.bias, self.token_ids, self.rows, self.offset, *lora):
            if tensor is not None:
                yield tensor


@dataclass(frozen=True, slots=True)
class Changes:
    """By names of the base's modules; empty for a plain LoRA.

    `magnitudes` [out_features] are those of DoRA (arXiv 2402.09353), `offsets` [out_features] are
    added to an output, `biases` [out_features] take the place of the base's; `norms` are
    parameters, by name, that take the place of a norm's.
    """

    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    offsets: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    embedding: TableChange | None = None
    head: TableChange | None = None
    features: tuple[str, ...] = ()  # keys of the config that brought them, sorted

    def __bool__(self) -> bool:
        return any(True for _ in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from self.magnitudes.values()
        yield from self.offsets.values()
        yield from self.biases.values()
        for parameters in self.norms.values():
            yield from parameters.values()
        for table in (self.embedding, self.head):
            if table is not None:
                yield from table.tensors()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())
