"""Compiles the forms of paged attention that are shipped, as `fused.compile_check` does for the
fused linear, and says what is wrong with the machine code.

    python -m polygraft.kernels.paged.compile_check [--docs docs/gpu.md]
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

from polygraft.kernels.fused.compile_check import (
    KIB,
    SHARED_LIMIT,
    Compiled,
    compile_source,
    write_docs,
)
from polygraft.kernels.fused.tiles import Target
from polygraft.kernels.paged.kernel import paged_attention, paged_combine
from polygraft.kernels.paged.launch import COMBINED, constants
from polygraft.kernels.paged.tiles import LayerShape, PagedConfig, decode_config, prefill_config

BLOCK_SIZE = 16
CONTEXT = 8192
# Name and layer of models that use all that the kernel can do.
LAYERS = (
    ("Llama-3-8B", LayerShape(8, 4, 128, 128)),
    ("Qwen2.5-0.5B", LayerShape(2, 7, 64, 64)),
    ("Gemma-2-9B", LayerShape(8, 2, 256, 256, window=4096, softcap=50.0)),
    ("gpt-oss-20b", LayerShape(8, 8, 64, 64, window=128, has_sinks=True)),
)
_WGMMA_ROWS = 64  # of a tile, from which sm_90 has asynchronous matrix products


@dataclass(frozen=True, slots=True)
class PagedForm:
    """One kernel to compile: these tiles for this layer. is_combine: that which adds the parts."""

    target: Target
    model: str
    layer: LayerShape
    config: PagedConfig
    is_combine: bool = False


def shipped_forms() -> list[PagedForm]:
    """Decode and prefill of every layer; of the AMD chip, whose tools are slow, one layer's."""
    found = []
    targets: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")
    for target in targets:
        for model, layer in LAYERS if target != "gfx942" else LAYERS[:1]:
            decode = decode_config(layer.group, layer.dim, CONTEXT)
            found.append(PagedForm(target, model, layer, decode))
            found.append(PagedForm(target, model, layer, prefill_config(layer.group, layer.dim)))
        model, layer = LAYERS[0]
        decode = decode_config(layer.group, layer.dim, CONTEXT)
        found.append(PagedForm(target, model, layer, decode, is_combine=True))
    return found


def faults(form: PagedForm, code: Compiled) -> Iterator[str]:
    """What must not be, in words."""
    limit = SHARED_LIMIT[form.target]
    if code.spills:
        yield f"spills registers ({code.spills})"
    if code.shared > limit:
        yield f"needs {code.shared} bytes of shared memory, more than the chip's {limit}"
    if code.float_atomics:
        yield f"has {code.float_atomics} atomics of floats"
    if form.is_combine:
        return
    has_wgmma = form.target == "sm_90" and form.config.block_m >= _WGMMA_ROWS
    wanted = {"sm_80": "mma", "sm_90": "wgmma" if has_wgmma else "mma", "gfx942": "mfma"}
    if wanted[form.target] not in code.matrix.split(" + "):
        yield f"does not use {wanted[form.target]}"
    if form.target == "gfx942":
        return
    if not code.async_copies:
        yield "copies nothing asynchronously"
    if code.narrow_loads and not form.layer.has_sinks:  # which are numbers of two bytes
        yield f"has {code.narrow_loads} loads of two bytes"
    if code.serialized:
        yield "its asynchronous matrix products are serialized"


def compile_form(form: PagedForm) -> Compiled:
    """Compile with Triton's own tools and read the code."""
    options = {"num_warps": form.config.num_warps, "num_stages": form.config.num_stages}
    return compile_source(_source(form), form.target, options)


def _source(form: PagedForm) -> Any:
    """The kernel with bfloat16 tensors and the constants and alignments of a launch."""
    kernel = paged_combine if form.is_combine else paged_attention
    fixed = constants(form.layer, BLOCK_SIZE, form.config)
    if form.is_combine:
        fixed = {name: fixed[name] for name in COMBINED}
    types = {"parts_ptr": "*fp32", "sums_ptr": "*fp32", "scale": "fp32"}
    types |= dict.fromkeys(("tiles_ptr", "blocks_ptr"), "*i32")
    names = kernel.arg_names
    signature = {
        name: "constexpr"
        if name in fixed
        else types.get(name, "*bf16" if name.endswith("_ptr") else "i32")
        for name in names
    }
    aligned = [name for name in names if name not in fixed and name != "scale"]
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def label(form: PagedForm) -> str:
    """The cells of the table that name a form."""
    config, layer = form.config, form.layer
    extras = {
        "window": layer.window is not None,
        "soft cap": layer.softcap is not None,
        "sinks": layer.has_sinks,
    }
    what = ", ".join(name for name, has in extras.items() if has) or "plain"
    what = "adding the parts" if form.is_combine else what
    return (
        f"| {form.target} | {form.model} | {layer.group} x {layer.dim} | {what} "
        f"| {config.block_m} x {config.block_n} | {config.splits} x {config.split} "
        f"| {config.num_warps}, {config.num_stages} |"
    )


def table(results: Sequence[tuple[PagedForm, Compiled]]) -> str:
    """The results in Markdown."""
    lines = [
        f"Compiled with Triton {triton.__version__} in bfloat16, blocks of {BLOCK_SIZE}, a context "
        f"of {CONTEXT}.",
        "",
        "| target | model | query heads per key head x width | layer | rows x keys | parts "
        "| warps, stages | registers | spills | shared KB | matrix units | instructions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for form, code in results:
        lines.append(
            f"{label(form)} {code.registers} | {code.spills} | {code.shared / KIB:.0f} "
            f"| {code.matrix} | {code.instructions} |"
        )
    return "\n".join(lines)


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
