"""The requests of the exactness matrix, and what PEFT generates for each of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_models import byte_tokenizer, save_base
from tolerances import LOGITS_FP32
from torch import Tensor

from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Answer, Harness
from engine_support.peft_adapters import (
    Generated,
    generate_alone,
    generate_composed,
    save_adapters,
    save_virtual_adapters,
)
from polygraft.server.engine.device.path import DevicePath

NUM_TOKENS = 8
BLOCK = 16
Kind = str | tuple[tuple[str, float], ...] | None
_BEHIND_SOFT: Kind = (("lora4", -0.6), ("soft", 1.0))
KINDS: tuple[Kind, ...] = (
    None,
    "lora4",
    "rslora8",
    "patterns16",
    "soft",
    "p_tuning",
    "prefix",
    (("lora4", 0.7), ("patterns16", 1.5)),
    _BEHIND_SOFT,
)
_LENGTHS = (33, 48, 21, 60, 16, 37, 52, 40, 29)  # of the first prompt of each kind
_SHARED = 32  # of it are at most the beginning of the second
# What PEFT or transformers cannot generate, so that there is nothing to compare with: prefix tuning
# makes keys and values of one width for all layers; some classes generate from token ids only.
_NOT_COMPARED: dict[str, Kind] = {
    "deepseek_v2": "prefix",
    "deepseek_v3": "prefix",
    "mimo_v2_flash": "prefix",
    "gemma4": "prefix",
    "gemma3_vision": _BEHIND_SOFT,
}


@dataclass(frozen=True)
class Request:
    """One request and its expected answer."""

    kind: Kind
    prompt: list[int]
    token_ids: list[int]
    logits: Tensor  # [NUM_TOKENS, vocab_size]

    def submit_to(self, harness: Harness, request_id: str) -> None:
        """Queue it."""
        harness.submit(request_id, self.prompt, adapter=self.adapter, max_output_tokens=NUM_TOKENS)

    def assert_equal(self, answer: Answer) -> None:
        """The answer is PEFT's own: tokens equal, every logit within the bound."""
        assert answer.error is None, f"{self.kind}: {answer.error}"
        assert answer.token_ids == self.token_ids, f"{self.kind}"
        difference = (torch.stack(answer.logits) - self.logits).abs().max()
        assert difference <= LOGITS_FP32, f"{self.kind}: {difference}"

    def uses(self, adapter: str) -> bool:
        """Whether it asks for this adapter, alone or with others."""
        return adapter == self.kind or (isinstance(self.kind, tuple) and adapter in dict(self.kind))

    @property
    def adapter(self) -> str | Mapping[str, float] | None:
        """As `Harness.submit` takes it."""
        return dict(self.kind) if isinstance(self.kind, tuple) else self.kind


@dataclass(frozen=True)
class Solo:
    """An architecture's base, adapters and requests; two requests of a kind share a beginning."""

    base: Path
    adapters: Mapping[str, Path]
    requests: tuple[Request, ...]
    block_bytes: int

    def harness(
        self,
        *,
        poisoned: str | None = None,
        value: float = torch.nan,
        path: DevicePath | None = None,
        **settings: object,
    ) -> Harness:
        """An engine with all adapters on the device; in the tensors of `poisoned` stands `value`,
        which no check would let pass."""
        harness = Harness(self.base, path, **settings)
        for name, directory in self.adapters.items():
            harness.adapters.load(name, directory, poison=value if name == poisoned else None)
        return harness


def make_solo(architecture: str, directory: Path) -> Solo:
    """Build the base and its adapters, and let PEFT generate."""
    case = SERVED[architecture]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    adapters = save_adapters(base, directory, case.names)
    adapters |= save_virtual_adapters(base, directory)
    cache = Harness(base).engine._runner.cache
    cells = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) // cache.num_cells
    left_out = _NOT_COMPARED.get(architecture)
    if left_out == "prefix":
        del adapters["prefix"], adapters["projected"]
    requests = tuple(_requests(base, adapters, left_out))
    return Solo(base, adapters, requests, cells * BLOCK)


def _requests(base: Path, adapters: Mapping[str, Path], left_out: Kind) -> list[Request]:
    generator = torch.Generator().manual_seed(3)

    def draw(count: int) -> list[int]:
        drawn: list[int] = torch.randint(0, VOCAB, (count,), generator=generator).tolist()
        return drawn

    first = [draw(length) for length in _LENGTHS]
    second = [prompt[:_SHARED] + draw(1 + i % 4) for i, prompt in enumerate(first)]
    requests = []
    for kind, *prompts in zip(KINDS, first, second, strict=True):
        if kind is not None and kind == left_out:
            continue
        answers = _generate(base, adapters, kind, prompts)
        for prompt, (token_ids, logits) in zip(prompts, answers, strict=True):
            requests.append(Request(kind, prompt, token_ids, logits))
    return requests


def _generate(
    base: Path, adapters: Mapping[str, Path], kind: Kind, prompts: list[list[int]]
) -> list[Generated]:
    if not isinstance(kind, tuple):
        return generate_alone(base, adapters[kind] if kind else None, prompts, NUM_TOKENS)
    loras = {adapters[name]: weight for name, weight in kind if name != "soft"}
    soft = adapters["soft"] if "soft" in dict(kind) else None
    return [
        generate_composed(base, loras, prompt, NUM_TOKENS, soft_prompt=soft) for prompt in prompts
    ]
