"""What the machine code of the shipped forms was like when it was last read, beside the kernels.

Compiling all of them takes minutes. A form whose kernel, tiles and Triton are those of the record
need not be compiled again; if any of them changes, its entry no longer counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import triton

from polygraft.kernels.fused.machine_code import Compiled

RECORD = Path(__file__).with_name("compiled_forms.json")
SOURCES = ("kernel.py", "staged_kernel.py", "tile_functions.py", "launch.py", "machine_code.py")


def fingerprint(form: object) -> str:
    """Of a form, of the files that make its machine code and read it, and of Triton's version."""
    content = hashlib.sha256(f"{triton.__version__} {form!r}".encode())
    for name in SOURCES:
        content.update(Path(__file__).with_name(name).read_bytes())
    return content.hexdigest()[:16]


def read(path: Path = RECORD) -> dict[str, Compiled]:
    """By fingerprint; empty without a record."""
    if not path.exists():
        return {}
    return {key: Compiled(**fields) for key, fields in json.loads(path.read_text()).items()}


def write(results: Mapping[str, Compiled], path: Path = RECORD) -> None:
    """One form a line."""
    lines = [f" {json.dumps(key)}: {json.dumps(asdict(code))}" for key, code in results.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
