"""Who can be asked with shots: a base or an adapter in this process, or on a running server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polygraft.trainer.data import Example
from polygraft.trainer.icl import Asked
from polygraft.trainer.scoring import Prompt

if TYPE_CHECKING:
    from polygraft.trainer.frozen_base import FrozenBase
    from polygraft.trainer.scoring import Candidate


def local_base(name: str) -> Asked:
    """A base by its builtin name, directory or hub id. Raises InvalidRequest, ModelRefused."""
    from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer

    return asked_base(load_frozen_base(name, load_tokenizer(name), dtype="fp32", device="cpu"))


def asked_base(base: FrozenBase) -> Asked:
    """A base that is loaded, without any adapter."""
    from polygraft.trainer.local import asker

    return Asked(
        name=base.name,
        ask=asker(base, None),
        count=lambda prompt, rows: _count(base, prompt, rows),
        window=_window(base),
    )


def local_adapter(path: Path, base_path: str | None) -> Asked:
    """The adapter in a run or PEFT directory. Raises as `load_candidate`."""
    from polygraft.trainer.local import load_candidate

    return asked_adapter(path.name, load_candidate(path, base_path))


def asked_adapter(name: str, candidate: Candidate) -> Asked:
    """An adapter that is loaded, in the prompt that it carries."""
    base = candidate.base
    assert base is not None  # it is local
    virtual = candidate.virtual_tokens
    return Asked(
        name=name,
        ask=candidate.ask_adapter,
        count=lambda prompt, rows: [virtual + n for n in _count(base, prompt, rows)],
        window=_window(base),
        prompt=candidate.prompt,
    )


def served(address: str, reference: str) -> Asked:
    """What a server answers: an adapter reference, or "base". Raises Unavailable, NotFound."""
    from polygraft.client import Client
    from polygraft.trainer.remote import connect_candidate, count_tokens, server_asker

    with Client(address) as client:
        window = client.model().context_length
    if reference in ("", "base"):
        return Asked(
            name="base",
            ask=server_asker(address, "", by_variables=False),
            count=lambda prompt, rows: count_tokens(address, "", prompt, rows),
            window=window,
        )
    candidate = connect_candidate(address, reference)
    assert candidate.digest is not None
    digest, virtual = candidate.digest, candidate.virtual_tokens

    def count(prompt: Prompt, rows: Sequence[Example]) -> list[int]:
        return [virtual + n for n in count_tokens(address, digest, prompt, rows)]

    # Behind shots the prompt is no longer what its variables make, so it is sent as text.
    return Asked(
        name=reference,
        ask=server_asker(address, digest, by_variables=False),
        count=count,
        window=window,
        prompt=candidate.prompt,
    )


def _count(base: FrozenBase, prompt: Prompt, rows: Sequence[Example]) -> list[int]:
    from polygraft.trainer.encode import encode_prompt
    from polygraft.trainer.source import build_recipe

    recipe = build_recipe(prompt, base.tokenizer, base.configured_eos)
    return [len(encode_prompt(row, recipe, base.tokenizer)) for row in rows]


def _window(base: FrozenBase) -> int:
    from polygraft.adapters.geometry import context_length

    return context_length(base.model.config.get_text_config())
