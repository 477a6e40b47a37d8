"""Compiles Triton kernels for GPUs that need not be there, and reads their machine code.

Needs Triton, not a GPU.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from polygraft.kernels.fused.tiles import Target


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the machine code of a kernel is like."""

    registers: int  # of a thread
    spills: int  # instructions that move registers to memory and back; AMD: registers
    shared: int  # bytes
    matrix: str  # kinds of matrix instructions
    async_copies: int
    narrow_loads: int  # of two bytes
    float_atomics: int
    serialized: bool  # ptxas could not let asynchronous matrix products overlap
    instructions: int
    acquires: int = 0  # loads that wait for what another program wrote
    releases: int = 0  # and additions that announce it
    dependent_launches: int = 0  # PDL instructions


def compile_source(source: Any, target: Target, options: dict[str, int]) -> Compiled:
    """Any kernel. source: an ASTSource; options: num_warps and num_stages."""
    if target == "gfx942":
        return _read_amd(
            triton.compiler.compile(source, target=GPUTarget("hip", target, 64), options=options)
        )
    capability = int(target.removeprefix("sm_"))
    # Why: what ptxas says while Triton compiles spares a second run of it.
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()) as log:
        kernel = triton.compiler.compile(
            source, target=GPUTarget("cuda", capability, 32), options=options
        )
    return _read_nvidia(kernel, capability, log.getvalue())


def _read_nvidia(kernel: Any, capability: int, log: str) -> Compiled:
    """log: of ptxas, empty if Triton had the kernel in its cache."""
    ptx = kernel.asm["ptx"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, source = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(kernel.asm["cubin"])
        sass = _run(tools / "cuobjdump", "-res-usage", "-sass", binary)
        if "wgmma" in ptx and not log:
            source.write_text(ptx)
            ptxas = Path(get_ptxas(capability).path)
            log = _run(ptxas, "-v", f"--gpu-name=sm_{capability}a", source, "-o", folder + "/out")
    registers = re.search(r"REG:(\d+)", sass)
    assert registers, sass[:1000]
    kinds = {"wgmma": r"wgmma\.mma_async", "mma": r"\bmma\.sync"}
    return Compiled(
        registers=int(registers[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        shared=kernel.metadata.shared,
        matrix=" + ".join(kind for kind, pattern in kinds.items() if re.search(pattern, ptx)),
        async_copies=len(re.findall(r"cp\.async\.c[ag]|cp\.async\.bulk", ptx)),
        narrow_loads=len(re.findall(r"ld\.global\S*\.[bu]16\b", ptx)),
        float_atomics=len(re.findall(r"\b(?:red|atom)\.\S*\.b?f(?:16|32|64)", ptx)),
        serialized="C7510" in log or "serialized" in log,
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
        acquires=len(re.findall(r"\b(?:ld|atom)\.\S*\bacquire\b", ptx)),
        releases=len(re.findall(r"\b(?:red|atom|st)\.\S*\brelease\b", ptx)),
        dependent_launches=len(re.findall(r"griddepcontrol", ptx)),
    )


def _read_amd(kernel: Any) -> Compiled:
    code = kernel.asm["amdgcn"]
    count = {
        name: int(value)
        for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", code)
    }
    return Compiled(
        registers=count["vgpr_count"],
        spills=count["vgpr_spill_count"],
        shared=kernel.metadata.shared,
        matrix="mfma" if "v_mfma" in code else "",
        async_copies=0,
        narrow_loads=0,
        float_atomics=len(re.findall(r"atomic_(?:pk_)?add_(?:b?f)", code)),
        serialized=False,
        instructions=len(re.findall(r"^\t[vs]_|^\t(?:buffer|global|ds)_", code, re.MULTILINE)),
    )


def _run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {result.stderr.strip()}")
    return result.stdout + result.stderr
