"""The validation process: the same answers as without it, and files that try to kill it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import pytest
import torch
from adapter_support.directories import (
    MODULE,
    header_of,
    lora_config,
    small_geometry,
    write_adapter,
)
from peft import PrefixTuningConfig

from polygraft.adapters.base_changes import Changes, TableChange
from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterUnsupported,
    PolygraftError,
    Unavailable,
)
from polygraft.adapters.files import find_files
from polygraft.adapters.geometry import BaseGeometry, KVShape
from polygraft.adapters.limits import MIB, AdapterLimits
from polygraft.adapters.low_rank import LoraModule
from polygraft.adapters.process_records import (
    _RECORDS,
    error_from_json,
    error_to_json,
    from_json,
    to_json,
)
from polygraft.adapters.upload_header import UploadHeader
from polygraft.adapters.validation import ValidatedUpload, validate_files
from polygraft.adapters.validation_process import ValidationProcess
from polygraft.adapters.weights import AdapterWeights

LIMITS = AdapterLimits(max_rank=64)
SERVE = """
import sys, time
from polygraft.adapters.validation_worker import serve
def answer(request):
    {body}
serve(answer, sys.stdin, sys.stdout)
"""


@pytest.fixture(scope="module")
def process() -> Iterator[ValidationProcess]:
    made = ValidationProcess()
    yield made
    made.close()


def fake(body: str, **settings: float) -> tuple[ValidationProcess, list[str]]:
    """A process whose answer is some Python, and the causes for which processes were lost."""
    lost: list[str] = []
    command = (sys.executable, "-P", "-c", SERVE.format(body=body))
    return ValidationProcess(lost.append, command=command, **settings), lost  # type: ignore[arg-type]


def validate(
    process: ValidationProcess, folder: Path, geometry: BaseGeometry | None = None
) -> ValidatedUpload:
    files = find_files(folder)
    header = header_of(files, "sum", allow_unverified_base=True)
    return process.validate(header, files, geometry or small_geometry(), LIMITS)


def test_a_good_upload_is_validated_as_in_this_process(
    process: ValidationProcess, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a")
    files = find_files(folder)
    header = header_of(files, "sum", allow_unverified_base=True)
    here = validate_files(header, files, small_geometry(), LIMITS)
    there = process.validate(header, files, small_geometry(), LIMITS)
    assert (there.manifest, there.warnings) == (here.manifest, here.warnings)
    assert dict(there.files) == dict(here.files)
    assert list(there.weights.modules) == [MODULE]
    ours, theirs = here.weights.modules[MODULE], there.weights.modules[MODULE]
    assert (theirs.lora_a.shape, theirs.lora_b.dtype) == (ours.lora_a.shape, ours.lora_b.dtype)
    assert theirs.scaling == ours.scaling
    assert theirs.lora_a.is_meta
    assert there.weights.nbytes == here.weights.nbytes


def test_shapes_of_a_prefix_survive_the_way(process: ValidationProcess, tmp_path: Path) -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=4,
        num_layers=1,
        num_attention_heads=2,
        token_dim=8,
        task_type="CAUSAL_LM",
    )
    folder = write_adapter(
        tmp_path / "a", config.to_dict(), {"prompt_embeddings": torch.ones(4, 16)}
    )
    geometry = from_json(to_json(small_geometry()))
    geometry = BaseGeometry(
        **{name: getattr(geometry, name) for name in geometry.__slots__ if name != "kv"},
        kv=(KVShape(2, 4, 4),),
    )
    validated = validate(process, folder, geometry)
    assert validated.weights.prefix is not None
    assert validated.weights.prefix.shape == (1, 2, 2, 4, 4)
    assert validated.weights.num_virtual_tokens == 4


def test_refusals_come_back_as_they_were(process: ValidationProcess, tmp_path: Path) -> None:
    for change, kind in (
        ({"use_qalora": True}, AdapterUnsupported),
        ({"r": -1}, AdapterInvalid),
        ({"r": 65}, AdapterInvalid),
    ):
        folder = write_adapter(tmp_path / str(change), lora_config(**change))
        with pytest.raises(kind) as there:
            validate(process, folder)
        files = find_files(folder)
        header = header_of(files, "sum", allow_unverified_base=True)
        with pytest.raises(kind) as here:
            validate_files(header, files, small_geometry(), LIMITS)
        assert str(there.value) == str(here.value)
        assert there.value.code == here.value.code
        assert there.value.item == here.value.item
    assert process._process is not None
    assert process._process.poll() is None


def test_records_are_the_same_on_the_other_side() -> None:
    for value in (
        small_geometry(),
        LIMITS,
        header_of({}, "x"),
        (1, "a", None, 0.5, True),
        Path("/x"),
        {"a": (1, 2)},
    ):
        assert from_json(to_json(value)) == value
    assert from_json(to_json(MappingProxyType({"a": 1}))) == {"a": 1}
    for value in (object(), {1: 2}, b"bytes"):
        with pytest.raises(TypeError):
            to_json(value)
    with pytest.raises(KeyError):
        from_json({"record": "Path", "fields": {}})
    error = AdapterIncompatible("m.", reason="R", item="i", found=[1], allowed=2, hint="h.")
    again = error_from_json(error_to_json(error))
    assert (type(again), str(again), again.code) == (AdapterIncompatible, str(error), "R")
    with pytest.raises(TypeError):
        error_from_json({**error_to_json(error), "error": "Any"})


def records_in(hint: Any) -> Iterator[type[Any]]:
    """The data classes that a value of this type may hold."""
    for part in get_args(hint):
        yield from records_in(part)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        yield hint
        for inner in get_type_hints(hint).values():
            yield from records_in(inner)


@pytest.mark.parametrize("root", [AdapterWeights, BaseGeometry, AdapterLimits, UploadHeader])
def test_whatever_an_adapter_may_hold_can_travel(root: type[Any]) -> None:
    found = set(records_in(root))
    assert root in found
    assert {kind.__name__: kind for kind in found}.items() <= _RECORDS.items()


def test_an_adapter_that_changes_tables_travels() -> None:
    lora = LoraModule(torch.ones(2, 8), torch.ones(32, 2), 0.5)
    table = TableChange(weight=torch.ones(32, 8), token_ids=torch.arange(3), lora=lora)
    weights = AdapterWeights("lora", changes=Changes(embedding=table, features=("x",)))
    again = from_json(json.loads(json.dumps(to_json(weights))))
    assert isinstance(again, AdapterWeights)
    assert again.changes.features == ("x",)
    assert again.changes.nbytes == weights.changes.nbytes
    assert again.changes.embedding is not None
    assert again.changes.embedding.lora is not None
    assert again.changes.embedding.lora.scaling == 0.5


@pytest.mark.parametrize(
    ("body", "cause", "said"),
    [
        ("import os; os.abort()", "crash", "ends the process"),
        ("import os; os._exit(0)", "crash", "ends the process"),
        ("block = bytearray(1 << 30); return {}", "memory", "needs more memory"),
        ("while True: pass", "cpu", "more processor time"),
        ("time.sleep(60)", "time", "takes longer"),
        ("raise RuntimeError('a bug')", "error", "fails in an unexpected way"),
        ("print('noise', flush=True); return {}", "error", "fails in an unexpected way"),
    ],
)
def test_files_that_the_process_does_not_survive_are_refused(
    body: str, cause: str, said: str, tmp_path: Path
) -> None:
    wall_factor = 0.5 if cause == "time" else 60
    process, lost = fake(body, memory_bytes=64 * MIB, cpu_seconds=1, wall_factor=wall_factor)
    folder = write_adapter(tmp_path / "a")
    with pytest.raises(AdapterInvalid, match=said) as caught:
        validate(process, folder)
    assert caught.value.code == "VALIDATION_FAILED"
    assert lost == [cause]
    process.close()


def test_the_next_upload_gets_a_new_process(process: ValidationProcess, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    validate(process, folder)
    assert process._process is not None
    first = process._process.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(AdapterInvalid, match="ends the process"):
        validate(process, folder)
    validate(process, folder)
    assert process._process is not None
    assert process._process.pid != first


def test_the_process_is_niced_and_ends_with_the_server(
    process: ValidationProcess, tmp_path: Path
) -> None:
    validate(process, write_adapter(tmp_path / "a"))
    assert process._process is not None
    assert os.getpriority(os.PRIO_PROCESS, process._process.pid) >= 10
    assert process._process.stdin is not None
    alone, _ = fake("return {}")
    alone.warm()
    running = alone._process
    assert running is not None
    assert running.stdin is not None
    running.stdin.close()  # what the kernel does when the server is killed
    assert running.wait(30) == 0
    alone.close()


def test_the_process_is_not_told_the_secrets_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    process, lost = fake("import os; raise RuntimeError(' '.join(sorted(os.environ)))")
    details: list[str] = []
    real = process._lose
    monkeypatch.setattr(
        process, "_lose", lambda cause, detail: details.append(detail) or real(cause, detail)
    )
    with pytest.raises(AdapterInvalid):
        validate(process, write_adapter(tmp_path / "a"))
    assert "PATH" in details[0]
    assert "AWS" not in details[0]
    assert lost == ["error"]
    process.close()


def test_a_process_that_cannot_start_refuses_no_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    for command in (["/nonexistent"], [sys.executable, "-c", "raise SystemExit(1)"]):
        process = ValidationProcess(command=command)
        with pytest.raises(Unavailable) as caught:
            validate(process, folder)
        assert caught.value.code == "VALIDATION_UNAVAILABLE"
        process.close()


def test_a_server_that_ends_refuses_no_files(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    process, lost = fake("time.sleep(60)")
    folder = write_adapter(tmp_path / "a")
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(validate, process, folder)
        while process._process is None or not process._is_ready:
            time.sleep(0.01)
        process.close()
        with pytest.raises(PolygraftError) as caught:
            outcome.result()
    assert isinstance(caught.value, Unavailable)
    assert lost == []


def test_the_process_loads_no_more_than_it_needs() -> None:
    import subprocess

    code = (
        "import sys, polygraft.adapters.validation, polygraft.adapters.process_records;"
        "print([m for m in ('transformers', 'grpc', 'peft') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
