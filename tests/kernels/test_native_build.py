"""Compiling the native kernels: once, side by side, and not at all."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from polygraft.kernels.native import build, library


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    path = build.compiled_library()
    written = path.stat().st_mtime_ns
    assert build.compiled_library() == path
    assert path.stat().st_mtime_ns == written
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = "from polygraft.kernels.native.build import compiled_library as c; print(c())"
    environment = {**os.environ, build.CACHE_VARIABLE: str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(outputs) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("script", ["echo 'no such flag' >&2; exit 1", None])
def test_without_a_compiler_torch_is_used_and_said(
    script: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiler = tmp_path / "c++"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert library.native_kernels.__wrapped__() is None
    assert "native CPU kernels are unavailable" in caplog.text
    assert str(compiler) in caplog.text
