#!/usr/bin/env python3
"""Prove and measure on one NVIDIA GPU, in under ten minutes, and say whether the goals are met.

    make gpu-check                                        # all of it, into runs/gpu-check
    python -P benchmarks/gpu_check.py --phases kernels    # one phase or some
    python -P benchmarks/gpu_check.py --rehearse          # tiny sizes on a CPU: proves the program

Writes record.json and record.md after every phase. Exit codes: 0 every goal was measured and met;
1 a goal was missed or not measured, or a phase failed; 2 the command line is wrong; 3 there is no
GPU, or it was a rehearsal.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):  # and in the processes that a phase starts
    runpy.run_path(str(Path(__file__).with_name("importable.py")))

import argparse
import math
import os
from importlib import import_module

from benchmarks import peers
from benchmarks.gpu import machine
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.phases import LIMIT, PHASES, Phase
from benchmarks.gpu.record import Check
from benchmarks.gpu.runner import GRACE, phase_command, run_phase
from benchmarks.peers import lora_kernels


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = [phase.name for phase in PHASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), metavar="DIR")
    some = f"some of {', '.join(names)}"
    parser.add_argument(
        "--phases", nargs="+", choices=names, default=names, metavar="PHASE", help=some
    )
    tiny = "tiny sizes on the CPU, kernels interpreted; measures nothing"
    parser.add_argument("--rehearse", action="store_true", help=tiny)
    parser.add_argument("--phase", choices=names, help=argparse.SUPPRESS)  # in this process
    return parser.parse_args(arguments)


def main() -> int:
    """Run the phases that are asked for; the exit code is the verdict."""
    arguments = parse_arguments()
    why = machine.why_no_gpu()
    if why and not arguments.rehearse:
        print(f"gpu-check: {why}: nothing was checked.", file=sys.stderr)
        return machine.NO_GPU
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.phase:
        run_here(by_name(arguments.phase), arguments.out, rehearsal=arguments.rehearse)
        return 0
    return run_all(arguments)


def by_name(name: str) -> Phase:
    """The phase of that name."""
    return next(phase for phase in PHASES if phase.name == name)


def run_here(phase: Phase, out: Path, *, rehearsal: bool) -> None:
    """One phase in this process."""
    seconds = math.inf if rehearsal else phase.seconds - GRACE
    bench = Bench(out / f"{phase.name}.jsonl", rehearsal, seconds)
    getattr(import_module(f"benchmarks.gpu.{phase.module}"), phase.function)(bench)


def run_all(arguments: argparse.Namespace) -> int:
    """Each phase in a process of its own; the record is whole after each."""
    told = machine.describe_rehearsal() if arguments.rehearse else machine.describe()
    check = Check(told, arguments.rehearse, installed_peers())
    print(f"gpu-check: {told.sentence()}; at most {LIMIT} s", flush=True)
    options = ["--out", str(arguments.out), *(["--rehearse"] if arguments.rehearse else [])]
    for phase in PHASES:
        if phase.name not in arguments.phases:
            continue
        # Why no limit: what a rehearsal takes says nothing, on a busy machine least of all.
        limit = math.inf if arguments.rehearse else phase.seconds
        result = run_phase(phase, phase_command(__file__, options, phase), arguments.out, limit)
        check.phases.append(result)
        check.write(arguments.out)
        print(f"{phase.name}: {result.status} after {result.seconds:.0f} s", flush=True)
        if result.note:
            print(f"  see {arguments.out / phase.name}.log", flush=True)
    print((arguments.out / "record.md").read_text())
    print(f"gpu-check: {check.verdict}; the record is in {arguments.out}")
    if arguments.rehearse:
        return machine.NO_GPU
    return 0 if check.verdict == "passed" else 1


def installed_peers() -> str:
    """Whose kernels are measured beside ours, or why none."""
    try:
        return peers.version(lora_kernels.PEER)
    except peers.PeerAbsent as absent:
        return str(absent)


if __name__ == "__main__":
    sys.exit(main())
