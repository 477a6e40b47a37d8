"""Compiles every form of the fused kernel that is shipped, for GPUs that need not be there, and
says what is wrong with the machine code.

    python -m polygraft.kernels.fused.compile_check [--docs docs/kernels.md]

Register counts differ from one Triton to the next, so none is asserted: what must hold is that
nothing spills, that it fits the chip, and that it uses the chip's matrix units and asynchronous
copies. Needs Triton, not a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from polygraft.kernels.fused.kernel import fused_lora_linear
from polygraft.kernels.fused.launch import constants
from polygraft.kernels.fused.tiles import (
    LARGEST_BUCKET,
    Bucket,
    Target,
    TileConfig,
    choice,
)

KIB = 1024
SHARED_LIMIT: dict[Target, int] = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "gfx942": 64 * KIB}
TARGETS = tuple(SHARED_LIMIT)
DECODE_BLOCK_M = 64  # tiles up to here must leave room for a second program on a multiprocessor
REGISTERS = 65536  # of a multiprocessor

# The linear layers of Llama-3-8B, and two of Qwen2.5-0.5B, which are small enough to be split in
# large buckets: name, width of the sum, widths of the result's slices.
SITES = (
    ("qkv", 4096, (4096, 1024, 1024)),
    ("gate_up", 4096, (14336, 14336)),
    ("down", 14336, (4096,)),
    ("o", 4096, (4096,)),
    ("qkv of 896", 896, (896, 128, 128)),
    ("down to 896", 4864, (896,)),
)
MARKS = ("<!-- compiled kernels: begin -->", "<!-- compiled kernels: end -->")


@dataclass(frozen=True, slots=True)
class Form:
    """One kernel to compile: these tiles for this site."""

    target: Target
    site: str
    bucket: Bucket
    config: TileConfig


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the machine code of a form is like."""

    registers: int  # of a thread
    spills: int  # instructions that move registers to memory and back; AMD: registers
    shared: int  # bytes
    matrix: str  # kinds of matrix instructions
    async_copies: int
    narrow_loads: int  # of two bytes
    float_atomics: int
    serialized: bool  # ptxas could not let asynchronous matrix products overlap
    instructions: int


def shipped_forms(targets: Sequence[Target] = TARGETS) -> list[Form]:
    """Every form of tiles that `choice` gives for SITES, at the first site that takes it."""
    found: dict[tuple[object, ...], Form] = {}
    rows = [1 << exponent for exponent in range(LARGEST_BUCKET.bit_length())]
    for target in targets:
        for site, inputs, slices in SITES:
            buckets = [Bucket.forward(count, inputs, slices) for count in rows]
            for bucket in (*buckets, Bucket.gradient(rows[-1], inputs, slices)):
                config = choice(bucket, target)
                key = (target, config, bucket.is_gradient)
                found.setdefault(key, Form(target, site, bucket, config))
    return list(found.values())


def faults(form: Form, code: Compiled) -> Iterator[str]:
    """What must not be, in words."""
    limit = SHARED_LIMIT[form.target]
    if code.spills:
        yield f"spills registers ({code.spills})"
    if code.shared > limit:
        yield f"needs {code.shared} bytes of shared memory, more than the chip's {limit}"
    wanted = {"sm_80": "mma", "sm_90": "wgmma", "gfx942": "mfma"}[form.target]
    if wanted not in code.matrix.split(" + "):
        yield f"does not use {wanted}"
    if code.float_atomics:
        yield f"has {code.float_atomics} atomics of floats"
    if form.target == "gfx942":
        return
    if not code.async_copies:
        yield "copies nothing asynchronously"
    if code.narrow_loads:
        yield f"has {code.narrow_loads} loads of two bytes"
    if code.serialized:
        yield "its asynchronous matrix products are serialized"
    registers = code.registers * form.config.num_warps * 32
    if (
        form.config.block_m <= DECODE_BLOCK_M
        and 2 * max(code.shared / limit, registers / REGISTERS) > 1
    ):
        yield (
            f"leaves no room for a second program: {code.shared} of {limit} bytes of shared "
            f"memory, {registers} of {REGISTERS} registers"
        )


def compile_form(form: Form) -> Compiled:
    """Compile with Triton's own tools and read the code."""
    options = {"num_warps": form.config.num_warps, "num_stages": form.config.num_stages}
    return compile_source(_source(form), form.target, options)


def compile_source(source: Any, target: Target, options: dict[str, int]) -> Compiled:
    """Any kernel: `source` is an ASTSource."""
    backend = (
        GPUTarget("hip", target, 64)
        if target == "gfx942"
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    kernel = triton.compiler.compile(source, target=backend, options=options)
    return _read_amd(kernel) if target == "gfx942" else _read_nvidia(kernel, target)


def _source(form: Form) -> Any:
    """The kernel with bfloat16 tensors and the constants and alignments of a launch."""
    fixed: dict[str, int | bool] = constants(
        form.config, form.bucket.outputs, form.bucket.inputs, has_bias=False
    )
    fixed["stride_wn" if form.bucket.is_gradient else "stride_wk"] = 1
    types = {
        "scale_ptr": "*fp32",
        "column_weights_ptr": "*fp32",
        "planes_ptr": "*fp32",
        "row_columns_ptr": "*i32",
        "tile_columns_ptr": "*i32",
        "column_rows_ptr": "*i32",
        "arrivals_ptr": "*i32",
    }
    names = fused_lora_linear.arg_names
    signature = {
        name: "constexpr"
        if name in fixed
        else types.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in names
    }
    unaligned = {"M", "stride_sp"}
    aligned = [name for name in names if name not in fixed and name not in unaligned]
    return ASTSource(
        fn=fused_lora_linear,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def _read_nvidia(kernel: Any, target: Target) -> Compiled:
    ptx = kernel.asm["ptx"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, source = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(kernel.asm["cubin"])
        source.write_text(ptx)
        usage = _run(tools / "cuobjdump", "-res-usage", binary)
        sass = _run(tools / "cuobjdump", "-sass", binary)
        log = ""
        if "wgmma" in ptx:
            capability = int(target.removeprefix("sm_"))
            ptxas = Path(get_ptxas(capability).path)
            log = _run(ptxas, "-v", f"--gpu-name=sm_{capability}a", source, "-o", folder + "/out")
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
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


def label(form: Form) -> str:
    """The cells of the table that name a form."""
    tiles = form.config
    of = f"{form.site}, gradient of X" if form.bucket.is_gradient else form.site
    return (
        f"| {form.target} | {tiles.block_m} x {tiles.block_n} x {tiles.block_k} | {of} "
        f"| {tiles.block_c} | {tiles.split_k} | {'yes' if tiles.swap else 'no'} "
        f"| {tiles.num_warps}, {tiles.num_stages} |"
    )


def table(results: Sequence[tuple[Form, Compiled]]) -> str:
    """The results in Markdown."""
    lines = [
        f"Compiled with Triton {triton.__version__} in bfloat16 for linear layers of "
        "Llama-3-8B and Qwen2.5-0.5B, at the first layer that takes these tiles.",
        "",
        "| target | tiles M x N x K | of | columns | split | swapped | warps, stages | registers "
        "| spills | shared KB | matrix units | instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for form, code in results:
        lines.append(
            f"{label(form)} {code.registers} | {code.spills} | {code.shared / KIB:.0f} "
            f"| {code.matrix} | {code.instructions} |"
        )
    return "\n".join(lines)


def write_docs(path: Path, text: str) -> None:
    """Replace what stands between MARKS."""
    before, _, rest = path.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all forms; print the table and every fault; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--docs", type=Path, help="also write the table into this page")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at the same time")
    options = parser.parse_args(arguments)
    forms = shipped_forms()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        results = list(zip(forms, pool.map(compile_form, forms), strict=True))
    print(table(results))
    if options.docs:
        write_docs(options.docs, table(results))
    found = [f"{form}: {fault}" for form, code in results for fault in faults(form, code)]
    print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
