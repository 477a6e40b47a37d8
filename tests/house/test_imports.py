"""Importing and asking for help stay quick: nothing heavy is loaded for them."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from polygraft.commands import COMMANDS

HEAVY = ("torch", "transformers", "peft", "grpc", "numpy", "matplotlib")
MAX_HELP_CPU_SECONDS = 0.5


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "module",
    ["polygraft", "polygraft.cli", "polygraft.adapters.errors", "polygraft.adapters.registry"],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_importing_the_client_does_not_load_torch() -> None:
    code = "import sys, polygraft.client; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_python(code).strip() == "False False"


def test_importing_the_fused_operator_does_not_load_triton() -> None:
    code = "import sys, polygraft.kernels.fused.operator; print('triton' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_the_server_is_there_where_triton_is_not() -> None:
    """transformers makes torch load Triton where it finds it, so here it is not to be found."""
    modules = "polygraft.server.serve, polygraft.kernels.fused.operator"
    code = f"import sys; sys.modules['triton'] = None; import {modules}; print('imported')"
    assert run_python(code).strip() == "imported"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_loads_nothing_heavy(command: str) -> None:
    code = f"""if True:
        import atexit, sys
        from polygraft.cli import main
        found = lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
        atexit.register(found)
        main()"""
    run = [sys.executable, "-P", "-c", code, command, "--help"]
    result = subprocess.run(run, check=True, capture_output=True, text=True)
    assert result.stdout.strip()
    assert result.stderr.strip() == "[]"


def help_cpu_seconds(program: Path, command: str) -> float:
    """CPU seconds of one run, which do not depend on what else the machine is doing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([program, command, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_is_quick(command: str) -> None:
    program = Path(sys.executable).with_name("polygraft")
    assert min(help_cpu_seconds(program, command) for _ in range(3)) < MAX_HELP_CPU_SECONDS
