"""Compile the native kernels on this machine, once per source, compiler and processor.

Why at first use and not in a wheel: `-march=native` is worth a factor of two here (AVX-512, its
bfloat16 dot product), and a wheel would have to carry one build per processor. Triton compiles its
launchers the same way.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("source")
CACHE_VARIABLE = "POLYGRAFT_CACHE"
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp"),
    # Exact about NaN and Inf, which mark a row as broken; silent about errno and traps.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-maybe-uninitialized"),
)
TIMEOUT = 120  # seconds


class BuildFailed(Exception):
    """There is no compiler, or it refused; the message is what it said."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: $POLYGRAFT_CACHE, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polygraft"


def compiled_library() -> Path:
    """The compiled kernels; compiles them if this machine has not yet. Raises BuildFailed.

    Two processes may compile at once: each writes a file of its own and moves it into place.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise BuildFailed("no C++ compiler (c++, g++ or $CXX) was found")
    library = cache_folder() / f"kernels-{_key(compiler)}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _compile(compiler, library)
    return library


def _compile(compiler: str, library: Path) -> None:
    logger.info("compiling the native kernels into %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        # The OpenMP runtime is left unresolved: it must be the one that torch has loaded, because
        # two runtimes would each keep a pool of workers (docs/decisions/0007).
        compiled = Path(folder) / "kernels.o"
        _run([compiler, *FLAGS, "-c", str(SOURCE / "kernels.cpp"), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), "-o", str(built)])
        os.replace(built, library)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise BuildFailed(f"{command[0]} failed: {error.stderr[-2000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]} failed: {error}") from error


def _key(compiler: str) -> str:
    """Changes with anything that changes the library."""
    state = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    for part in (version.stdout, " ".join(FLAGS), platform.machine(), _processor()):
        state.update(part.encode() + b"\0")
    return state.hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
