"""What the trainer saw the adapter answer to real rows, kept in the run for a push to compare.

The probes inside the adapter are token ids, so a server proves with them that it computes the
adapter rightly. These rows are what callers send, variables or messages, so that a push also
notices a server that renders or encodes them otherwise. One JSON object per line of `parity.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.probes import MAX_PROBES, NUM_GREEDY, Probes
from polygraft.trainer.data import Example
from polygraft.trainer.forms import TEXT_VARIABLE, Form

if TYPE_CHECKING:
    from peft import PeftModel

    from polygraft.trainer.prepare import Prepared

WITNESS_FILE = "parity.jsonl"
"""In a run directory; its sha256 is in the manifest's provenance."""
SHA256_KEY = "parity_sha256"
_TEXT_CHARACTERS = 200  # of a row of plain text, which asks nothing, that are asked


@dataclass(frozen=True)
class Witness:
    """One row as a caller sends it, and how it has to be encoded and answered."""

    request: Mapping[str, Any]
    """`variables` or `messages`, as for `client.generate`."""
    token_ids: list[int]
    greedy_ids: list[int]
    """Ends of sequence included: what comes without stopping at them."""
    greedy_margin: list[float]
    """By how much the logit of each was ahead of the next one."""


def save_witnesses(
    peft_model: PeftModel, prepared: Prepared, probes: Probes, directory: Path
) -> None:
    """Write the file for validation rows that lie evenly; rows too long for the base are left.

    What `probes` hold of the same prompts is not computed again.
    """
    from polygraft.trainer.probes import greedy

    known = {
        prompt: (probes.greedy_ids[i].tolist(), probes.greedy_margin[i].tolist())
        for i, prompt in enumerate(probes.prompts())
    }
    longest = prepared.geometry.context_length - NUM_GREEDY
    longest -= getattr(prepared.config.method, "virtual_tokens", 0)
    lines = []
    for request, token_ids in _asked(prepared, longest):
        greedy_ids, margins = known.get(tuple(token_ids)) or greedy(peft_model, token_ids)
        witness = Witness(request, token_ids, greedy_ids, [round(m, 6) for m in margins])
        lines.append(json.dumps(asdict(witness), ensure_ascii=False) + "\n")
    (directory / WITNESS_FILE).write_text("".join(lines), encoding="utf-8")


def witness_sha256(directory: Path) -> str | None:
    """Identity of the file; None where the run has none, as runs of unserved methods."""
    path = directory / WITNESS_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_witnesses(directory: Path, sha256: object) -> list[Witness]:
    """The rows of a run. Raises AdapterInvalid unless they are those that its manifest names."""
    path = directory / WITNESS_FILE
    if sha256 is None or witness_sha256(directory) != sha256:
        raise AdapterInvalid(
            "the answers that the trainer saw are missing or not those of this run, so nothing "
            "could show whether the server renders its prompts as the training did.",
            file=str(path),
            hint="Train it again, or publish it unproven with `polygraft adapters push`.",
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Witness(**json.loads(line)) for line in lines]


def _asked(prepared: Prepared, longest: int) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """At most `MAX_PROBES` different requests with the token ids that the trainer encodes."""
    rows = list({row.example.asked: row.example for row in prepared.validation}.values())
    if prepared.source.form is Form.TEXT:
        rows = [_asking(row) for row in prepared.source.splits.validation]
    step = max(1, len(rows) // MAX_PROBES)
    for row in rows[::step][:MAX_PROBES]:
        token_ids = _encode(row, prepared)
        if 0 < len(token_ids) <= longest:
            yield _request(row), token_ids


def _encode(row: Example, prepared: Prepared) -> list[int]:
    from polygraft.trainer.encode import encode_prompt
    from polygraft.trainer.source import build_recipe

    base = prepared.base
    recipe = build_recipe(prepared.source.prompt, base.tokenizer, base.configured_eos)
    return encode_prompt(row, recipe, base.tokenizer)


def _asking(row: Example) -> Example:
    return replace(row, variables={TEXT_VARIABLE: row.completion[:_TEXT_CHARACTERS]})


def _request(row: Example) -> dict[str, Any]:
    if row.messages:
        return {"messages": [dict(turn) for turn in row.messages]}
    return {"variables": dict(row.variables)}
