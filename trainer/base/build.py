"""Builds a base model from a seed: tokenizer, pre-training, checks, files, card."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polygraft.trainer.base.card import write_card
from polygraft.trainer.base.corpus import documents
from polygraft.trainer.base.files import PINNED, write_hashes
from polygraft.trainer.base.mix import exact_match, mix_rows
from polygraft.trainer.base.orphans import orphan_ids
from polygraft.trainer.base.preset import Preset
from polygraft.trainer.base.pretrain import new_model, pretrain
from polygraft.trainer.base.tokenizer import train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
REPORT_FILE = "build.json"
STATE_FILE = "state.pt"

OnProgress = Callable[[int, float], None]
"""Called after each step with its number (from 1) and its loss."""


class OrphanTokensError(Exception):
    """The corpus never asks for some printable ids of the tokenizer."""


@dataclass(frozen=True)
class BuildReport:
    """How a base was made and what it can do; stands in `build.json` beside the weights."""

    preset_name: str
    preset: dict[str, Any]
    seed: int
    parameters: int
    tokens: int
    cpu_minutes: float
    compiled: bool
    threads: int
    versions: dict[str, str]
    mix: dict[str, float]
    loss: list[tuple[int, float]] = field(default_factory=list)


def build(
    out: Path,
    preset_name: str,
    preset: Preset,
    *,
    seed: int,
    compiled: bool,
    on_progress: OnProgress,
    save_every: int = 0,
) -> BuildReport:
    """Makes a base in the folder `out`, loadable by transformers, with card and hash file.

    `save_every` > 0 writes the state of the run to `out/state.pt` every so many steps, which a
    later call continues. The same seed gives the same corpus, tokenizer, order and start
    everywhere; the weights are the same to the bit only on the same processor type, torch version
    and thread count.

    Raises:
        OrphanTokensError: before training, when a printable id would never be learned.
    """
    tokenizer = build_tokenizer(preset, seed)
    if orphans := orphan_ids(tokenizer, preset, seed):
        shown = ", ".join(repr(tokenizer.decode([token_id])) for token_id in orphans[:10])
        raise OrphanTokensError(
            f"{len(orphans)} printable ids are too rare in the corpus to be learned ({shown}); "
            "raise RANDOM_PIECES in the corpus or split_documents in the preset"
        )
    model = new_model(preset, tokenizer, seed)
    losses: list[tuple[int, float]] = []
    window: list[float] = []

    def on_step(step: int, loss: float, model: LlamaForCausalLM) -> None:
        window.append(loss)
        if step % 100 == 0 or step == preset.steps:
            losses.append((step, round(sum(window) / len(window), 4)))
            window.clear()
        on_progress(step, loss)

    end = pretrain(
        model,
        tokenizer,
        preset,
        seed=seed,
        compiled=compiled,
        on_step=on_step,
        state_file=out / STATE_FILE,
        save_every=save_every,
    )
    save(out, model, tokenizer)
    report = BuildReport(
        preset_name=preset_name,
        preset=asdict(preset),
        seed=seed,
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=end.tokens,
        cpu_minutes=round(end.cpu_seconds / 60, 1),
        compiled=compiled,
        threads=torch.get_num_threads(),
        versions=_versions(),
        mix=_score(out, tokenizer),
        loss=losses,
    )
    (out / REPORT_FILE).write_text(json.dumps(asdict(report), indent=1) + "\n")
    write_hashes(out)
    write_card(out, asdict(report))
    return report


def build_tokenizer(preset: Preset, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer that `seed` gives: learned on documents that no training shard holds."""
    return train_tokenizer(_tokenizer_texts(seed), preset.vocabulary, preset.context)


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes weights in bf16, config, generation config and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    shipped.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name in PINNED:
        (out / name).chmod(0o644)  # safetensors writes 0600, which would travel into packages


def _tokenizer_texts(seed: int) -> Iterator[str]:
    for document in documents(f"tokenizer/{seed}", TOKENIZER_DOCUMENTS):
        for user, answer in document.turns or ((document.text, ""),):
            yield user
            yield answer


def _score(out: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """The mix by the weights as shipped, computed in fp32."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    return {k: round(v, 1) for k, v in exact_match(model, tokenizer, mix_rows()).items()}


def _versions() -> dict[str, str]:
    import tokenizers
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
