"""Writes an adapter into the weights of its base, and proves that the result is the same model.

For engines that know no adapters. What is written is loaded again by plain transformers and
compared with base and adapter as PEFT computes them; a difference means that nothing is kept.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polygraft.adapters.errors import AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import CONFIG_FILE
from polygraft.client.upload import find_adapter
from polygraft.trainer.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polygraft.trainer.local import OpenAdapter
    from polygraft.trainer.methods.adapted import Adapted

TOLERANCE = 1e-5
"""Of logits, against the largest of them or 1, in float64 from the float32 weights."""
_REFUSED = {
    "PROMPT_TUNING": "a soft prompt is tokens in front of every prompt, not a change of weights",
    "P_TUNING": "a soft prompt is tokens in front of every prompt, not a change of weights",
    "PREFIX_TUNING": "a prefix is keys and values in front of a prompt, not a change of weights",
    "HOULSBY": "its layers compute something that no weights of the base could",
}
DType = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Merged:
    """What was written, and how far its logits are from those of base and adapter."""

    directory: Path
    base: str
    error: float
    """Largest, over the largest logit, before any rounding to `dtype`."""
    rounding: float | None
    """The same after rounding; None in fp32."""
    effect: float
    """How far the adapter moves the logits of the base, in the same measure."""
    prompts: int

    def sentence(self) -> str:
        """The proof in one line."""
        rounded = "" if self.rounding is None else f"; rounded to the dtype {self.rounding:.1e}"
        return (
            f"logits of {self.prompts} prompts differ by at most {self.error:.1e} of the largest "
            f"({TOLERANCE:g} allowed), the adapter moves them by {self.effect:.2g}{rounded}"
        )


def merge(path: Path, out: Path, base_path: str | None, *, dtype: DType = "fp32") -> Merged:
    """Merge the adapter of a run or PEFT directory into a new model directory.

    Raises RecipeError when `out` exists, AdapterUnsupported for what is no change of weights,
    AdapterInvalid (nothing is kept) when the result computes something else.
    """
    import torch

    from polygraft.trainer.local import open_adapter

    if out.exists():
        raise RecipeError("exists already.", file=str(out), hint="Name a new directory: --out DIR.")
    files = find_adapter(path)
    _check_kind(files)
    opened = open_adapter(path, base_path)
    prompts = _prompts(opened, files)
    with torch.inference_mode():
        before = _logits(opened.base.model, prompts)
        adapted = opened.attach()
        wanted = _logits(adapted, prompts)
    # Why hidden: a killed merge leaves nothing that looks like a model.
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        model = _merged_model(adapted)
        opened.base.tokenizer.save_pretrained(work)
        model.save_pretrained(work)
        error = _distance(_reloaded_logits(work, prompts), wanted)
        rounding = None
        if not error <= TOLERANCE:  # also where it is NaN
            raise _differs(path, error)
        if dtype != "fp32":
            rounded = model.to({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
            rounded.save_pretrained(work)
            rounding = _distance(_reloaded_logits(work, prompts), wanted)
        merged = Merged(
            directory=out,
            base=opened.base.name,
            error=error,
            rounding=rounding,
            effect=_distance(before, wanted),
            prompts=len(prompts),
        )
        _write_card(work, opened, merged)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return merged


def _check_kind(files: Mapping[str, Path]) -> None:
    config = files[CONFIG_FILE]
    kind = json.loads(config.read_text(encoding="utf-8")).get("peft_type")
    if kind in _REFUSED:
        raise AdapterUnsupported(
            f"{kind} cannot be merged: {_REFUSED[kind]}.",
            file=str(config),
            item="peft_type",
            found=kind,
            hint="Serve it as an adapter: `polygraft push`.",
        )


def _merged_model(adapted: Adapted) -> Any:
    """The base with the change in its own weights."""
    from peft import PeftModel

    if isinstance(adapted, PeftModel):
        merge_and_unload: Any = adapted.merge_and_unload
        try:
            with warnings.catch_warnings():
                # The proof says whether the tie matters to this adapter.
                warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
                return merge_and_unload()
        except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            raise AdapterInvalid(
                f"PEFT cannot merge it: {error}; nothing was written.",
                reason="MERGE_IMPOSSIBLE",
                hint="Serve it as an adapter.",
            ) from error
    return adapted.model  # selective and full change it in place


def _prompts(opened: OpenAdapter, files: Mapping[str, Path]) -> list[list[int]]:
    """Token ids of its own probes, or of texts of many kinds where it has none."""
    from polygraft.adapters.files import PROBES_FILE
    from polygraft.adapters.probes import read_probes
    from polygraft.adapters.tokenizer_corpus import CORPUS

    manifest = opened.manifest
    if manifest is not None and manifest.probes is not None:
        vocab_size = int(opened.base.model.config.get_text_config().vocab_size)
        probes = read_probes(files[PROBES_FILE], count=manifest.probes.count, vocab_size=vocab_size)
        return [list(prompt) for prompt in probes.prompts()]
    encoded = [opened.base.tokenizer.encode(text, add_special_tokens=False) for text in CORPUS]
    return [ids[:64] for ids in encoded if len(ids) >= 4][:8]


def _logits(model: nn.Module | Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """In float64, so that only the weights' own rounding remains; the model is left as it was."""
    import torch

    dtype = next(model.parameters()).dtype
    model.double()
    found = [model(input_ids=torch.tensor([list(ids)])).logits[0] for ids in prompts]
    model.to(dtype)
    return found


def _reloaded_logits(directory: Path, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    model.train(False)
    with torch.inference_mode():
        return _logits(model, prompts)


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest difference over the largest logit, or over 1 where all are smaller."""
    largest = max(1.0, *(float(logits.abs().max()) for logits in wanted))
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def _differs(path: Path, error: float) -> AdapterInvalid:
    return AdapterInvalid(
        f"merged into the weights it is another model: logits differ by {error:.2g} of the "
        "largest; nothing was written.",
        reason="MERGE_DIFFERS",
        file=str(path),
        found=f"{error:.2g}",
        allowed=f"{TOLERANCE:g}",
        hint="An adapter of the output head of a base with tied embeddings is such a case: its "
        "merge would change the input embedding too. Serve it as an adapter.",
    )


def _write_card(directory: Path, opened: OpenAdapter, merged: Merged) -> None:
    version = opened.manifest.digest if opened.manifest else "without a manifest"
    text = f"""# {directory.name.removeprefix(".").removesuffix(".part")}

{merged.base} with an adapter merged into its weights by `polygraft merge`.

- adapter: {version}
- base: {merged.base}, weights {opened.base.fingerprint.weights_sha256}
- proof: {merged.sentence()}
"""
    (directory / "README.md").write_text(text, encoding="utf-8")
