"""Raw rows of any data set to `{prompt, completion}` rows, by templates."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from polygraft.trainer.digests import digest
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.library import Template, choose
from polygraft.trainer.rows import read_rows


def write_instructions(
    data: str, out: Path, templates: Sequence[Template], *, every: bool = False
) -> int:
    """Write one pair per row, or with `every` one per row and template; returns how many.

    A pair keeps its row: `id`, `group` (the row's own, else its content's hash, so that the
    wordings of one row never cross splits), `source` and `template`. Raises DataError naming the
    row; nothing is written then.
    """
    if out.exists():
        raise RecipeError("is there already.", file=str(out), hint="Choose another --out.")
    lines = []
    for number, row in read_rows(data):
        content = json.dumps(row, sort_keys=True, default=str)
        place = f"{data}:{number}"
        for template in templates if every else [choose(templates, content)]:
            prompt, completion = template.pair(row, place)
            pair = {
                "id": f"{row.get('id', number)}/{template.id}",
                "group": str(row.get("group", digest(content)[:16])),
                "prompt": prompt,
                "completion": completion,
                "template": template.id,
                "source": place,
            }
            lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError("holds no rows.", file=data)
    hidden = out.with_name(f".{out.name}.part")
    hidden.write_text("".join(lines), encoding="utf-8")
    os.replace(hidden, out)
    return len(lines)
