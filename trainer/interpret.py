"""Reads a soft prompt: the vocabulary tokens nearest to each virtual token, held against chance.

In a space of a hundred and more dimensions some token is always nearest. So the same is asked of
vocabularies whose rows are shuffled entry by entry, which have the same numbers and no meaning; a
virtual token that is no nearer to the real one than to those says nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polygraft.adapters.errors import AdapterUnsupported
from polygraft.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from polygraft.client.upload import find_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polygraft.trainer.methods.adapted import Adapted

START_FILE = "soft_prompt_start.safetensors"
"""In the run directory of a soft prompt: where its training began."""
NEAREST = 5
DRAWS = 20
"""Shuffled vocabularies: one that is beaten by chance in each of them would be 1 of 21."""
_EMBEDDING_KINDS = ("PROMPT_TUNING", "P_TUNING")
_TENSOR = "prompt_embeddings"
_CHUNK_ROWS = 4096  # of the vocabulary, shuffled at a time


@dataclass(frozen=True)
class Neighbour:
    """A token of the vocabulary and its cosine to a virtual token."""

    token_id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class VirtualToken:
    """What one virtual token reads like."""

    index: int
    nearest: tuple[Neighbour, ...]
    """The best first."""
    baseline: float
    """Cosine to the nearest row of a shuffled vocabulary, mean over the draws."""
    chance: float
    """The same, the highest of all draws: what has to be beaten."""
    start: Neighbour | None
    """The token it began nearest to; None where the start is not known."""
    kept: float | None
    """Cosine to its own start: 1 has not turned at all."""

    @property
    def says_something(self) -> bool:
        """Whether its nearest token is nearer than chance ever was."""
        return self.nearest[0].cosine > self.chance


@dataclass(frozen=True)
class Reading:
    """All virtual tokens of one adapter."""

    tokens: tuple[VirtualToken, ...]
    draws: int

    @property
    def mean_cosine(self) -> float:
        """To the nearest token."""
        return sum(token.nearest[0].cosine for token in self.tokens) / len(self.tokens)

    @property
    def mean_baseline(self) -> float:
        """The same in shuffled vocabularies."""
        return sum(token.baseline for token in self.tokens) / len(self.tokens)

    def words(self) -> list[tuple[str, int]]:
        """Texts among the nearest of tokens that say something, the commonest first."""
        found = Counter(
            neighbour.text.strip()
            for token in self.tokens
            if token.says_something
            for neighbour in token.nearest
            if neighbour.cosine > token.chance and neighbour.text.strip()
        )
        return found.most_common()

    def sentences(self) -> list[str]:
        """What may be concluded, and what may not."""
        silent = [token.index for token in self.tokens if not token.says_something]
        count = len(self.tokens)
        lines = [
            f"mean cosine to the nearest token {self.mean_cosine:.2f}, in shuffled vocabularies "
            f"{self.mean_baseline:.2f}",
            f"{count - len(silent)} of {count} virtual tokens are nearer to a token than in any of "
            f"{self.draws} shuffled vocabularies",
        ]
        if silent:
            numbers = ", ".join(map(str, silent))
            lines.append(f"read nothing into {numbers}: chance finds a token as near")
        drift = [token.kept for token in self.tokens if token.kept is not None]
        if drift:
            lines.append(
                f"cosine to their own start: {min(drift):.2f} to {max(drift):.2f}, mean "
                f"{sum(drift) / len(drift):.2f}"
            )
        else:
            lines.append("how far they moved is not known: only runs of `polygraft train` say it")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For `--json` and the report."""
        tokens = [
            {**asdict(token), "says_something": token.says_something} for token in self.tokens
        ]
        return {
            "schema": "polygraft.soft-prompt-reading/1",
            "draws": self.draws,
            "mean_cosine": self.mean_cosine,
            "mean_baseline": self.mean_baseline,
            "sentences": self.sentences(),
            "words": self.words(),
            "tokens": tokens,
        }


def save_start(adapted: Adapted, directory: Path) -> None:
    """Keep the virtual tokens of an adapter that is not trained yet; nothing for other methods."""
    from peft import PeftModel
    from safetensors.torch import save_file

    if not isinstance(adapted, PeftModel):
        return
    if adapted.active_peft_config.peft_type not in _EMBEDDING_KINDS:
        return
    start = adapted.get_prompt_embedding_to_save(adapted.active_adapter).detach()
    save_file({_TENSOR: start.float().cpu().contiguous()}, directory / START_FILE)


def interpret(path: Path, base_path: str | None, *, draws: int = DRAWS) -> Reading:
    """Read the soft prompt of a run or PEFT directory.

    Raises AdapterUnsupported for what has no virtual tokens in the space of the embeddings.
    """
    from safetensors.torch import load_file

    from polygraft.trainer.local import load_base_of

    files = find_adapter(path)
    _check_kind(files)
    prompt = load_file(files[WEIGHTS_FILE])[_TENSOR].float()
    base = load_base_of(files, base_path)
    embed: Any = base.model.get_input_embeddings()
    count = min(len(base.tokenizer), embed.weight.shape[0])
    with torch.inference_mode():  # through the module, since some scale inside it (Gemma)
        vocabulary = embed(torch.arange(count)[None])[0].float()
    return read_prompt(prompt, vocabulary, base.tokenizer, start=_start_of(path), draws=draws)


@torch.inference_mode()
def read_prompt(
    prompt: Tensor,
    vocabulary: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start: Tensor | None = None,
    draws: int = DRAWS,
) -> Reading:
    """`prompt` and `start` are [virtual_tokens, hidden], `vocabulary` [tokens, hidden]."""
    unit, rows = _unit(prompt), _unit(vocabulary)
    best = (unit @ rows.T).topk(NEAREST)
    chance = _nearest_by_chance(unit, rows, draws)  # [draws, virtual_tokens]
    began = (_unit(start) @ rows.T).max(-1) if start is not None else None
    kept = (unit * _unit(start)).sum(-1) if start is not None else None
    tokens = []
    for index in range(len(prompt)):
        nearest = tuple(
            _neighbour(tokenizer, token_id, cosine)
            for token_id, cosine in zip(best.indices[index], best.values[index], strict=True)
        )
        first = None
        if began is not None:
            first = _neighbour(tokenizer, began.indices[index], began.values[index])
        tokens.append(
            VirtualToken(
                index=index,
                nearest=nearest,
                baseline=float(chance[:, index].mean()),
                chance=float(chance[:, index].max()),
                start=first,
                kept=None if kept is None else float(kept[index]),
            )
        )
    return Reading(tuple(tokens), draws)


def _nearest_by_chance(unit: Tensor, rows: Tensor, draws: int) -> Tensor:
    """Largest cosine to a vocabulary whose rows are shuffled each by itself, by draw."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        largest = torch.full((len(unit),), -1.0)
        for chunk in torch.split(rows, _CHUNK_ROWS):
            order = torch.rand(chunk.shape, generator=generator).argsort(dim=1)
            largest = torch.maximum(largest, (unit @ chunk.gather(1, order).T).max(-1).values)
        found.append(largest)
    return torch.stack(found)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _neighbour(tokenizer: PreTrainedTokenizerBase, token_id: Tensor, cosine: Tensor) -> Neighbour:
    text = str(tokenizer.decode([int(token_id)]))
    return Neighbour(int(token_id), text, round(float(cosine), 4))


def _start_of(path: Path) -> Tensor | None:
    from safetensors.torch import load_file

    for directory in (path, path.parent):  # a run, or the adapter/ in it
        if (directory / START_FILE).is_file():
            return load_file(directory / START_FILE)[_TENSOR]
    return None


def _check_kind(files: Mapping[str, Path]) -> None:
    kind = json.loads(files[CONFIG_FILE].read_text(encoding="utf-8")).get("peft_type")
    if kind in _EMBEDDING_KINDS:
        return
    reasons = {
        "PREFIX_TUNING": "its virtual tokens are keys and values of every layer, which stand in no "
        "vocabulary"
    }
    raise AdapterUnsupported(
        f"{kind} cannot be read: {reasons.get(kind, 'it has no virtual tokens')}.",
        file=str(files[CONFIG_FILE]),
        item="peft_type",
        found=kind,
        allowed=" or ".join(_EMBEDDING_KINDS),
        hint="Train one with method: {kind: prompt}.",
    )
