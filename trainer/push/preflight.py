"""What can be known to be wrong with a run before a byte of it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid, AdapterUnsupported
from polygraft.adapters.files import MANIFEST_FILE, WEIGHTS_FILE, hash_file
from polygraft.adapters.fingerprint import Fingerprint
from polygraft.adapters.manifest import Manifest, parse_manifest
from polygraft.adapters.self_test import LEAST_EFFECT
from polygraft.client.upload import find_adapter
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.push.witness import SHA256_KEY, Witness, read_witnesses
from polygraft.trainer.reader import unreduced
from polygraft.trainer.recipe import RESOLVED, load_resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polygraft.client import Model
    from polygraft.trainer.config import RunConfig


@dataclass(frozen=True)
class PushedRun:
    """A complete run as it lies on disk."""

    directory: Path
    config: RunConfig
    manifest: Manifest
    files: Mapping[str, Path]


def read_pushed(directory: Path) -> PushedRun:
    """Raises RecipeError when it is no complete run, AdapterInvalid when files are missing."""
    if not (directory / RESOLVED).is_file() or not (directory / MANIFEST_FILE).is_file():
        raise RecipeError(
            "is no complete run of `polygraft train`.",
            file=str(directory),
            hint="A plain PEFT directory is published by `polygraft adapters push DIR NAME`.",
        )
    files = find_adapter(directory)
    manifest = parse_manifest(files[MANIFEST_FILE].read_bytes())
    return PushedRun(directory, load_resolved(directory), manifest, files)


def check_servable(run: PushedRun) -> None:
    """Raises AdapterUnsupported when no server computes the method."""
    if not run.manifest.servable:
        reason = run.manifest.provenance.get("not_servable") or "its manifest says so"
        raise AdapterUnsupported(
            f"it cannot be served: {reason}.",
            file=str(run.files[MANIFEST_FILE]),
            item="servable",
            hint="Score it with `polygraft score`; to serve the task, train a lora or a prompt.",
        )


def check_files(run: PushedRun) -> str:
    """Every file is the one that the manifest names. Raises AdapterInvalid naming the first."""
    for record in run.manifest.files:
        path = run.files[record.name]
        if path.stat().st_size != record.size or hash_file(path) != record.sha256:
            raise AdapterInvalid(
                "is not the file that the run wrote: its sha256 is not the manifest's.",
                file=str(path),
                item="sha256",
                allowed=record.sha256,
                hint="Take the run directory as it was written, or train it again.",
            )
    size = run.manifest.size_bytes / 1024
    return f"{len(run.manifest.files)} as in the manifest, {size:,.0f} KiB"


def check_weights(run: PushedRun, vocab_size: int) -> str:
    """All tensors are finite, and by the trainer's own probes they change the base's answers.

    Raises AdapterInvalid.
    """
    import torch
    from safetensors import safe_open

    from polygraft.adapters.probes import read_probes

    count = 0
    with safe_open(run.files[WEIGHTS_FILE], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
            count += 1
            if not bool(torch.isfinite(file.get_tensor(name)).all()):
                raise AdapterInvalid(
                    "holds NaN or infinite values.", file=str(run.files[WEIGHTS_FILE]), item=name
                )
    if run.manifest.probes is None:
        raise AdapterInvalid(
            "it has no probes, so no server could prove that it computes it rightly.",
            file=str(run.files[MANIFEST_FILE]),
            item="probes",
            hint="Train it again, or publish it unproven with `polygraft adapters push`.",
        )
    path = run.files[run.manifest.probes.file]
    probes = read_probes(path, count=run.manifest.probes.count, vocab_size=vocab_size)
    effect = float((probes.top_logprobs - probes.base_top_logprobs).abs().max())
    if effect < LEAST_EFFECT:
        raise AdapterInvalid(
            f"it changes nothing: no log-probability of its probes moved more than {effect:.2g}.",
            reason="NO_EFFECT",
            file=str(path),
            allowed=f">= {LEAST_EFFECT:g}",
            hint="Train longer or with a higher rate.",
        )
    return f"{count} tensors, all finite; the largest change of a log-probability is {effect:.3g}"


def check_prompt(run: PushedRun) -> tuple[str, list[Witness]]:
    """What callers send, and what the trainer saw the adapter answer to it.

    Raises AdapterUnsupported for a prompt that an adapter cannot carry, AdapterInvalid without
    the trainer's answers.
    """
    if reason := unreduced(run.config.data):
        raise AdapterUnsupported(
            f"its prompt cannot be reduced to text and variables: {reason}.",
            file=str(run.directory / RESOLVED),
            item="data.template",
            hint="Use one template of plain fields; or publish it with `polygraft adapters push`, "
            "and render the prompt in every caller as the training did.",
        )
    witnesses = read_witnesses(run.directory, run.manifest.provenance.get(SHA256_KEY))
    if not witnesses:
        raise AdapterInvalid(
            "no validation row fits the base's context with an answer, so nothing can be compared.",
            file=str(run.directory),
            hint="Publish it with `polygraft adapters push`.",
        )
    prompt = run.manifest.prompt
    sent = f"variables {', '.join(prompt.variables)}" if prompt else "messages"
    return f"callers send {sent}", witnesses


def check_base(run: PushedRun, model: Model) -> str:
    """The server runs the very base of the training. Raises AdapterIncompatible with both."""
    base, tokenizer = run.manifest.base, run.manifest.tokenizer
    wanted = Fingerprint(
        weights_sha256=base.weights_sha256 or "",
        config_sha256=base.config_sha256 or "",
        tokenizer_sha256=tokenizer.behaviour_sha256 if tokenizer else "",
    )
    found = Fingerprint(
        weights_sha256=model.weights_sha256,
        config_sha256=model.config_sha256,
        tokenizer_sha256=model.tokenizer_sha256,
    )
    differing = [
        f"{name} {getattr(wanted, key)[:12]} against {getattr(found, key)[:12]}"
        for name, key in (
            ("weights", "weights_sha256"),
            ("config", "config_sha256"),
            ("tokenizer", "tokenizer_sha256"),
        )
        if getattr(wanted, key) != getattr(found, key)
    ]
    if differing:
        raise AdapterIncompatible(
            f"it was trained on {base.name!r}, the server runs {model.name!r}: "
            f"{'; '.join(differing)}.",
            item="base",
            hint="Push it to a server of its own base, or train it on this one.",
        )
    return f"{model.name}: weights, config and tokenizer are those of the training"


def check_limits(run: PushedRun, model: Model) -> str:
    """Rank, virtual tokens and bytes are within the server's. Raises AdapterIncompatible."""
    form = run.manifest.format
    found = []
    for name, size, limit in (
        ("rank", form.max_rank, model.max_rank),
        ("virtual tokens", form.virtual_token_count, model.max_virtual_tokens),
        ("bytes", run.manifest.size_bytes, model.max_adapter_bytes),
    ):
        if size > limit:
            raise AdapterIncompatible(
                f"{name}: it has {size}, the server takes {limit}.",
                item=name,
                found=size,
                allowed=limit,
                hint="Train a smaller one, or raise the server's limit.",
            )
        if size:
            found.append(f"{name} {size:,} of {limit:,}")
    return ", ".join(found)
