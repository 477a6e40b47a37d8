"""A base or an adapter in this process, for benchmarks without a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.adapters.prompt import PromptRecipe, RecipeDefaults, TextSegment
from polygraft.client.upload import find_adapter
from polygraft.trainer import methods
from polygraft.trainer.bench.scored_model import Advance, Facts, Likelihood, TokenPair
from polygraft.trainer.frozen_base import FrozenBase, load_frozen_base, load_tokenizer
from polygraft.trainer.local import open_adapter
from polygraft.trainer.methods.adapted import Adapted, AdaptedModel

BATCH_ROWS = 32
BATCH_TOKENS = 8192
DEFAULT_WINDOW = 2048
"""For a base whose config does not say, as in lm-eval."""


def open_local(name: str, base_path: str | None = None) -> LocalModel:
    """A run or PEFT directory, else a base: `builtin:nano`, a directory or a hub id.

    Raises what `open_adapter` and `load_frozen_base` raise.
    """
    path = Path(name)
    if path.is_dir() and any((path / sub / CONFIG_FILE).is_file() for sub in (".", "adapter")):
        opened = open_adapter(path, base_path)
        facts = _facts(name, opened.base)
        facts = replace(
            facts,
            adapter=opened.manifest.digest if opened.manifest else path.resolve().name,
            adapter_bytes=find_adapter(path)[WEIGHTS_FILE].stat().st_size,
        )
        return LocalModel(facts, opened.base, opened.attach())
    base = load_frozen_base(name, load_tokenizer(name), dtype="fp32", device="cpu")
    return LocalModel(_facts(name, base), base)


class LocalModel:
    """Computes in fp32; a soft prompt stands in front of every text."""

    def __init__(self, facts: Facts, base: FrozenBase, adapted: Adapted | None = None) -> None:
        self.facts = facts
        self._base, self._adapted = base, adapted
        self._model: Any = base.model if adapted is None else adapted
        self._model.train(False)
        positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
        self.window = int(positions or DEFAULT_WINDOW) - _virtual_tokens(adapted)

    @property
    def bos(self) -> int:
        """BOS, or EOS where the tokenizer has none."""
        tokenizer = self._base.tokenizer
        bos = tokenizer.bos_token_id
        return int(tokenizer.eos_token_id if bos is None else bos)

    def encode(self, texts: Sequence[str], *, bare: bool = False) -> list[list[int]]:
        """Token ids; a text that begins with BOS gets no second one."""
        tokenizer = self._base.tokenizer
        bos = tokenizer.bos_token
        return [
            list(
                tokenizer.encode(
                    text,
                    add_special_tokens=not bare and not (bos and text.startswith(str(bos))),
                )
            )
            for text in texts
        ]

    @torch.inference_mode()
    def score(self, pairs: Sequence[TokenPair], advance: Advance) -> list[Likelihood]:
        """Pairs that differ in their last token only are computed once."""
        sharing: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            sharing[(*pair.context, *pair.continuation)[:-1]].append(index)
        found: dict[int, Likelihood] = {}
        for batch in _batches(sharing):
            for ids, logits in zip(batch, self._logits(batch), strict=True):
                for index in sharing[ids]:
                    continuation = pairs[index].continuation
                    found[index] = _likelihood(logits[: len(ids)], continuation)
                advance(len(sharing[ids]))
        return [found[index] for index in range(len(pairs))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_output_tokens: int,
        stop: Sequence[str],
        advance: Advance,
    ) -> list[str]:
        """Greedy, through the generator that scores training runs."""
        recipe = PromptRecipe(
            segments=(TextSegment(text="-"),),
            defaults=RecipeDefaults(max_output_tokens=str(max_output_tokens)),
        )
        generator = methods.generator(self._base, self._adapted, recipe)
        generator = replace(generator, stop_sequences=tuple(stop))
        texts = []
        for start in range(0, len(prompts), BATCH_ROWS):
            answers = generator(prompts[start : start + BATCH_ROWS])
            texts += [answer.text for answer in answers]
            advance(len(answers))
        return texts

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """By the tokenizer's own template."""
        text = self._base.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def _logits(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """[rows, width, vocabulary], padded on the right; virtual positions are left out."""
        width, device = max(map(len, rows)), self._base.model.device
        ids = torch.full((len(rows), width), self.bos, device=device)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, device=device)
            mask[index, : len(row)] = 1
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        return logits[:, -width:]


def _likelihood(logits: torch.Tensor, continuation: Sequence[int]) -> Likelihood:
    """`logits` [tokens, vocabulary] of a row whose last ones predict the continuation."""
    tail = logits[-len(continuation) :].float()
    wanted = torch.tensor(continuation, device=tail.device)
    chosen = tail.log_softmax(-1).gather(1, wanted[:, None])
    return Likelihood(float(chosen.sum()), bool((tail.argmax(-1) == wanted).all()))


def _batches(rows: Mapping[tuple[int, ...], object]) -> Iterator[list[tuple[int, ...]]]:
    """Rows of like length together, the longest first."""
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and (len(batch) == BATCH_ROWS or len(batch[0]) * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _virtual_tokens(adapted: Adapted | None) -> int:
    if adapted is None or isinstance(adapted, AdaptedModel):
        return 0
    config = adapted.active_peft_config
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0


def _facts(name: str, base: FrozenBase) -> Facts:
    """Of the base alone, so before an adapter is put into it."""
    parameters = base.model.parameters()
    return Facts(
        target=f"local:{name}",
        base=base.name,
        weights_sha256=base.fingerprint.weights_sha256,
        adapter=None,
        has_chat_template=base.tokenizer.chat_template is not None,
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        adapter_bytes=None,
    )
