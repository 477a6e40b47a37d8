"""Compiles every form of the fused kernel that is shipped, for GPUs that need not be there, and
says what is wrong with the machine code.

    python -m polygraft.kernels.fused.compile_check [--docs docs/kernels.md]

Register counts differ from one Triton to the next, so none is asserted: what must hold is that
nothing spills, that it fits the chip, and that it uses the chip's matrix units and asynchronous
copies. What is on record and unchanged is not compiled again (`compiled_record`). Needs Triton, not
a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.compiler import ASTSource

from polygraft.kernels.fused import compiled_record
from polygraft.kernels.fused.compiled_record import fingerprint
from polygraft.kernels.fused.dispatch import COLUMN_BUCKETS, Dispatcher, tiles_of
from polygraft.kernels.fused.kernel import fused_lora_linear
from polygraft.kernels.fused.launch import constants, stage_constants
from polygraft.kernels.fused.machine_code import Compiled, compile_source
from polygraft.kernels.fused.staged_kernel import staged_lora_linear
from polygraft.kernels.fused.tiles import LARGEST_BUCKET, Bucket, Stage, Target, TileConfig

__all__ = ["KIB", "SHARED_LIMIT", "Compiled", "compile_source", "faults", "shipped_forms", "table"]

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


_STAGES: dict[str, tuple[Stage | None, ...]] = {
    "inline": (None,),
    "producers": (Stage.FUSED,),
    "pair": (Stage.SHRINK, Stage.BASE_AND_EXPAND),
    "hybrid": (Stage.SHRINK, Stage.EXPAND),
    "base": (),
}
_STAGE_NAMES = {
    None: "I",
    Stage.FUSED: "P",
    Stage.SHRINK: "shrink",
    Stage.BASE_AND_EXPAND: "base + expand",
    Stage.EXPAND: "expand",
}
# What does not change the machine code of a stage.
_UNUSED: dict[Stage | None, tuple[str, ...]] = {
    None: (),
    Stage.FUSED: ("PRODUCERS",),
    Stage.BASE_AND_EXPAND: ("PRODUCERS", "SHRINK_BLOCK_K"),
    Stage.SHRINK: ("PRODUCERS", "BLOCK_N", "BLOCK_K", "EVEN_K", "GROUP_M"),
    Stage.EXPAND: ("PRODUCERS", "BLOCK_K", "EVEN_K", "SHRINK_BLOCK_K"),
}


@dataclass(frozen=True, slots=True)
class Form:
    """One kernel to compile: these tiles for this site. stage: None for kernel I."""

    target: Target
    site: str
    bucket: Bucket
    config: TileConfig
    stage: Stage | None = None

    @property
    def is_dependent(self) -> bool:
        """Whether it is linked to its neighbour by PDL."""
        return self.config.variant == "pair" and self.target == "sm_90"


def shipped_forms(targets: Sequence[Target] = TARGETS) -> list[Form]:
    """Every form that the dispatcher gives for SITES, at the first site that takes it; and of the
    pair, which is there to be asked for, those of the first site."""
    found: dict[tuple[object, ...], Form] = {}
    for target in targets:
        for site, bucket, config in (*_chosen(target), *_pairs(target)):
            for stage in _STAGES[config.variant]:
                form = Form(target, site, bucket, config, stage)
                found.setdefault(_code_key(form), form)
    return list(found.values())


def _code_key(form: Form) -> tuple[object, ...]:
    """What tells the machine code of two forms apart, but for the widths of their sites."""
    _, fixed = _kernel(form)
    unused = ("N0", "N1", "N2", "K0", "K1", "K2", *_UNUSED[form.stage])
    used = tuple(value for name, value in fixed.items() if name not in unused)
    config = form.config
    return form.target, form.bucket.is_gradient, used, config.num_warps, config.num_stages


def _kernel(form: Form) -> tuple[Any, dict[str, int | bool]]:
    """The kernel of a form and its compile-time arguments."""
    outputs, inputs = form.bucket.outputs, form.bucket.inputs
    if form.stage is None:
        return fused_lora_linear, constants(form.config, outputs, inputs, has_bias=False)
    return staged_lora_linear, stage_constants(
        form.config, outputs, inputs, has_bias=False, stage=form.stage, pdl=form.is_dependent
    )


def _chosen(target: Target) -> Iterator[tuple[str, Bucket, TileConfig]]:
    dispatcher = Dispatcher(target)
    rows = [1 << exponent for exponent in range(LARGEST_BUCKET.bit_length())]
    for site, inputs, slices in SITES:
        forward = [Bucket.forward(count, inputs, slices) for count in rows]
        gradient = [Bucket.gradient(count, inputs, slices) for count in (1, rows[-1])]
        for bucket in (*forward, *gradient):
            for columns in COLUMN_BUCKETS:
                yield site, bucket, dispatcher.choice(bucket, columns)


def _pairs(target: Target) -> Iterator[tuple[str, Bucket, TileConfig]]:
    if target != "sm_90":
        return
    site, inputs, slices = SITES[0]
    for rows in (1, 256):
        bucket = Bucket.forward(rows, inputs, slices)
        yield site, bucket, tiles_of("pair", bucket, 256, target)


def faults(form: Form, code: Compiled) -> Iterator[str]:
    """What must not be, in words."""
    limit = SHARED_LIMIT[form.target]
    if code.spills:
        yield f"spills registers ({code.spills})"
    if code.shared > limit:
        yield f"needs {code.shared} bytes of shared memory, more than the chip's {limit}"
    if code.float_atomics:
        yield f"has {code.float_atomics} atomics of floats"
    yield from _matrix_faults(form, code)
    if form.target == "gfx942":
        return
    yield from _order_faults(form, code)
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


def _matrix_faults(form: Form, code: Compiled) -> Iterator[str]:
    wanted = {"sm_80": "mma", "sm_90": "wgmma", "gfx942": "mfma"}[form.target]
    # Why not: the low-rank sums of few rows and columns are smaller than asynchronous products.
    if form.target == "sm_90" and form.stage in (Stage.SHRINK, Stage.EXPAND):
        wanted = "mma"
    if not any(kind.endswith(wanted) for kind in code.matrix.split(" + ")):
        yield f"does not use {wanted}"
    if form.target != "gfx942" and form.stage != Stage.EXPAND and not code.async_copies:
        yield "copies nothing asynchronously"


def _order_faults(form: Form, code: Compiled) -> Iterator[str]:
    """Of the instructions by which programs wait for each other."""
    flags = code.acquires, code.releases
    if form.stage == Stage.FUSED and 0 in flags:
        yield f"does not wait for its producers: {flags[0]} acquires, {flags[1]} releases"
    if form.stage != Stage.FUSED and any(flags):
        yield f"has {flags[0]} acquires and {flags[1]} releases, but nothing to wait for"
    if form.is_dependent != bool(code.dependent_launches):
        yield f"has {code.dependent_launches} instructions of dependent launches"


def compile_form(form: Form) -> Compiled:
    """Compile with Triton's own tools and read the code."""
    options = {"num_warps": form.config.num_warps, "num_stages": form.config.num_stages}
    return compile_source(_source(form), form.target, options)


def _source(form: Form) -> Any:
    """The kernel with bfloat16 tensors and the constants and alignments of a launch."""
    kernel, fixed = _kernel(form)
    fixed["stride_wn" if form.bucket.is_gradient else "stride_wk"] = 1
    floats = ("scale_ptr", "column_weights_ptr", "planes_ptr", "low_ptr")
    integers = (
        *("row_columns_ptr", "tile_columns_ptr", "column_rows_ptr"),
        *("arrivals_ptr", "ready_ptr"),
    )
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(integers, "*i32")
    names = kernel.arg_names
    signature = {
        name: "constexpr"
        if name in fixed
        else types.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in names
    }
    unaligned = {"M", "num_splits", "stride_sp"}
    aligned = [name for name in names if name not in fixed and name not in unaligned]
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def label(form: Form) -> str:
    """The cells of the table that name a form."""
    tiles = form.config
    of = f"{form.site}, gradient of X" if form.bucket.is_gradient else form.site
    return (
        f"| {form.target} | {_STAGE_NAMES[form.stage]}{', PDL' if form.is_dependent else ''} "
        f"| {tiles.block_m} x {tiles.block_n} x {tiles.block_k} | {of} | {tiles.block_c} "
        f"| {tiles.split_k}, {tiles.shrink_split} | {'yes' if tiles.swap else 'no'} "
        f"| {tiles.num_warps}, {tiles.num_stages} |"
    )


def table(results: Sequence[tuple[Form, Compiled]]) -> str:
    """The results in Markdown."""
    lines = [
        f"Compiled with Triton {triton.__version__} in bfloat16 for linear layers of "
        "Llama-3-8B and Qwen2.5-0.5B, at the first layer that takes these tiles.",
        "",
        "| target | kernel | tiles M x N x K | of | columns | split, of S | swapped "
        "| warps, stages | registers | spills | shared KB | matrix units | instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
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


def compile_all(forms: Sequence[Form], jobs: int) -> list[Compiled]:
    """In `jobs` processes."""
    if not forms:
        return []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        return list(pool.map(compile_form, forms))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all forms; print the table and every fault; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--docs", type=Path, help="compile all, write the record and the table into this page"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilations at the same time")
    options = parser.parse_args(arguments)
    forms = shipped_forms()
    known = {} if options.docs else compiled_record.read()
    # Why every tenth is compiled anyway: so that the record itself is held to what it says.
    wanted = [f for i, f in enumerate(forms) if i % 10 == 0 or fingerprint(f) not in known]
    print(f"compiling {len(wanted)} of {len(forms)} forms; the others are known", file=sys.stderr)
    made = dict(zip(wanted, compile_all(wanted, options.jobs), strict=True))
    results = [(form, made.get(form) or known[fingerprint(form)]) for form in forms]
    print(table(results))
    found = [f"{form}: {fault}" for form, code in results for fault in faults(form, code)]
    found += [
        f"{form}: the record says {known[fingerprint(form)]}, it is {code}"
        for form, code in made.items()
        if known.get(fingerprint(form), code) != code
    ]
    if options.docs:
        write_docs(options.docs, table(results))
        compiled_record.write({fingerprint(form): code for form, code in results})
    print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
