"""Everything bad is refused by name with the right status, and the server goes on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from polygraft.adapters.chunks import crc32c
from polygraft.client import PolygraftError
from polygraft.protos import adapters_pb2 as pb
from polygraft.protos import adapters_pb2_grpc, generation_pb2, generation_pb2_grpc

if TYPE_CHECKING:
    from conftest import Served

Stubs = tuple[generation_pb2_grpc.GenerationServiceStub, adapters_pb2_grpc.AdapterServiceStub]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


async def refusal(call: object) -> tuple[grpc.StatusCode, str, str]:
    """Status code, reason and sentence of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    trailers = dict(raised.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "polygraft"
    return raised.value.code(), info.reason, status.message


@pytest.fixture
async def stubs(served: Served) -> AsyncIterator[Stubs]:
    async with grpc.aio.insecure_channel(served.client.address) as channel:
        yield (
            generation_pb2_grpc.GenerationServiceStub(channel),
            adapters_pb2_grpc.AdapterServiceStub(channel),
        )


def upload(
    directory: Path,
    name: str = "bad",
    *,
    verified: bool = False,
    tamper: Callable[[bytes], bytes] = lambda data: data,
    file_names: dict[str, str] | None = None,
) -> Iterator[pb.UploadAdapterRequest]:
    """Upload messages; `tamper` changes the bytes of the weights after they were declared."""
    files = {p.name: p.read_bytes() for p in directory.iterdir() if p.name in (WEIGHTS, CONFIG)}
    files |= {p.name: p.read_bytes() for p in directory.glob("manifest.json")}
    renamed = {(file_names or {}).get(k, k): v for k, v in files.items()}
    header = pb.UploadHeader(adapter_name=name, allow_unverified_base=not verified)
    for file, data in renamed.items():
        header.files.add(name=file, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    yield pb.UploadAdapterRequest(header=header)
    for index, (file, data) in enumerate(renamed.items()):
        sent = tamper(data) if file == WEIGHTS else data
        chunk = pb.FileChunk(file_index=index, offset_bytes=0, data=sent, crc32c=crc32c(sent))
        yield pb.UploadAdapterRequest(chunk=chunk)


def change_config(directory: Path, **changes: object) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_nan(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    next(iter(weights.values()))[0, 0] = math.nan
    save_file(weights, directory / WEIGHTS)


def make_modules_to_save(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    weights["base_model.model.model.layers.0.mlp.up_proj.weight"] = torch.ones(96, 48)
    save_file(weights, directory / WEIGHTS)
    change_config(directory, modules_to_save=["up_proj"])


def make_other_base(directory: Path) -> None:
    """As if trained on a model of twice the width."""
    weights = {
        name: torch.cat([tensor, tensor], dim=int("lora_A" in name))
        for name, tensor in load_file(directory / WEIGHTS).items()
    }
    save_file(weights, directory / WEIGHTS)


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "KaSA": (lambda d: change_config(d, kasa_config={"beta": 1}), "ADAPTER_UNSUPPORTED", "kasa"),
    "half a DoRA": (lambda d: change_config(d, use_dora=True), "ADAPTER_INVALID", "magnitude"),
    "modules_to_save": (make_modules_to_save, "ADAPTER_UNSUPPORTED", "a full weight"),
    "PiSSA": (
        lambda d: change_config(d, init_lora_weights="pissa"),
        "ADAPTER_UNSUPPORTED",
        "init_lora_weights",
    ),
    "unknown key": (lambda d: change_config(d, magic=3), "ADAPTER_UNSUPPORTED", "magic"),
    "NaN": (make_nan, "ADAPTER_INVALID", "NaN"),
    "other shapes": (make_other_base, "ADAPTER_INCOMPATIBLE", "q_proj"),
    "not safetensors": (
        lambda d: (d / WEIGHTS).write_bytes(b"\x80\x04pickle"),
        "ADAPTER_UNSUPPORTED",
        "pickle",
    ),
    "not JSON": (lambda d: (d / CONFIG).write_text("{"), "ADAPTER_INVALID", CONFIG),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_and_unsupported_adapters(
    served: Served, stubs: Stubs, tmp_path: Path, case: str
) -> None:
    spoil, reason, item = BROKEN[case]
    directory = shutil.copytree(served.saved.adapters["lora4"], tmp_path / "bad")
    spoil(directory)
    code, found, message = await refusal(stubs[1].UploadAdapter(upload(directory)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert found == reason, message
    assert item in message
    await still_serves(served)


async def test_rank_over_the_limit(served: Served, stubs: Stubs, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(served.saved.base)
    config = LoraConfig(r=300, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "wide")
    code, reason, message = await refusal(stubs[1].UploadAdapter(upload(tmp_path / "wide")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert reason == "ADAPTER_INCOMPATIBLE"
    assert "300" in message
    assert "256" in message
    await still_serves(served)


async def test_a_bare_peft_directory_must_be_asked_for(served: Served, stubs: Stubs) -> None:
    directory = served.saved.adapters["lora4"]
    code, reason, message = await refusal(stubs[1].UploadAdapter(upload(directory, verified=True)))
    assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
    assert reason == "ADAPTER_INCOMPATIBLE"
    assert "allow_unverified_base" in message


async def test_bytes_that_are_not_those_declared(served: Served, stubs: Stubs) -> None:
    directory = served.saved.adapters["lora4"]
    tampered: list[Callable[[bytes], bytes]] = [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ]
    for tamper in tampered:
        code, reason, _ = await refusal(stubs[1].UploadAdapter(upload(directory, tamper=tamper)))
        assert code is grpc.StatusCode.DATA_LOSS
        assert reason in ("UPLOAD_CORRUPT", "UPLOAD_INCOMPLETE")
    await still_serves(served)


@pytest.mark.parametrize(
    "name", ["../evil", "a/../b", "/etc/passwd", "UPPER", "", "a" * 64, ".hidden", "a\x00b", "ünï"]
)
async def test_path_tricks_in_adapter_names(served: Served, stubs: Stubs, name: str) -> None:
    directory = served.saved.adapters["lora4"]
    code, _, _ = await refusal(stubs[1].UploadAdapter(upload(directory, name)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    await still_serves(served)


@pytest.mark.parametrize("file", ["../../evil.json", "/etc/passwd", "a/b/c.json", "code.py"])
async def test_path_tricks_in_file_names(served: Served, stubs: Stubs, file: str) -> None:
    directory = served.saved.adapters["lora4"]
    call = stubs[1].UploadAdapter(upload(directory, file_names={CONFIG: file}))
    code, _, message = await refusal(call)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert message
    await still_serves(served)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"adapter": "nobody", "prompt": "x"}, "NOT_FOUND", "ADAPTER_NOT_FOUND"),
        ({"prompt": ""}, "INVALID_ARGUMENT", "EMPTY_PROMPT"),
        ({"prompt": "x" * 500}, "INVALID_ARGUMENT", "PROMPT_TOO_LONG"),
        ({}, "INVALID_ARGUMENT", "MISSING_INPUT"),
        (
            {"prompt": "x", "sampling": {"temperature": math.nan}},
            "INVALID_ARGUMENT",
            "INVALID_SAMPLING",
        ),
        ({"prompt": "x", "sampling": {"temperature": -1}}, "INVALID_ARGUMENT", "INVALID_SAMPLING"),
        ({"prompt": "x", "sampling": {"top_p": 1.5}}, "INVALID_ARGUMENT", "INVALID_SAMPLING"),
        ({"prompt": "x", "sampling": {"top_k": -3}}, "INVALID_ARGUMENT", "INVALID_SAMPLING"),
        *(
            ({"prompt": "x", "sampling": sampling}, "INVALID_ARGUMENT", "INVALID_SAMPLING")
            for sampling in (
                {"temperature": -0.0},
                {"top_p": 0.0},
                {"min_p": 1.5},
                {"min_p": math.inf},
                {"repetition_penalty": 0.0},
                {"repetition_penalty": math.nan},
                {"presence_penalty": 2.5},
                {"frequency_penalty": -math.inf},
                {"logit_bias": {3: 101.0}},
                {"logit_bias": {3: -0.0}},
                {"seed": -1},
                {"seed": 2**53},
                {"n": 0},
                {"n": 9},
            )
        ),
        *(
            ({"prompt": "x", "stopping": stopping}, "INVALID_ARGUMENT", reason)
            for stopping, reason in (
                ({"max_output_tokens": 0}, "INVALID_REQUEST"),
                ({"min_output_tokens": -1}, "INVALID_REQUEST"),
                ({"max_output_tokens": 3, "min_output_tokens": 4}, "INVALID_REQUEST"),
                ({"stop_sequences": ["a"] * 17}, "LIMIT_EXCEEDED"),
                ({"stop_sequences": [""]}, "INVALID_REQUEST"),
                ({"stop_token_ids": [100_000]}, "INVALID_TOKEN"),
                ({"time_limit": Duration()}, "INVALID_REQUEST"),
                ({"time_limit": Duration(seconds=1, nanos=-1)}, "INVALID_REQUEST"),
                ({"time_limit": Duration(nanos=2_000_000_000)}, "INVALID_REQUEST"),
            )
        ),
        ({"prompt": "x", "output": {"top_logprobs": 21}}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"prompt": "x", "output": {"prompt_logprobs": -1}}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"prompt": "x", "constraint": {}}, "INVALID_ARGUMENT", "INVALID_CONSTRAINT"),
        (
            {"prompt": "x", "constraint": {"regex": "x" * 9000}},
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
        ),
        ({"prompt": "x", "priority": 7}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (
            {"prompt": "x", "adapter": "a", "adapters": [{"adapter": "b"}]},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            {"prompt": "x", "adapters": [{"adapter": "a", "weight": 5.0}]},
            "INVALID_ARGUMENT",
            "INVALID_COMPOSITION",
        ),
        ({"prompt": "x", "adapters": [{"adapter": ""}]}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"prompt": "x", "adapters": [{"adapter": "no"}]}, "NOT_FOUND", "ADAPTER_NOT_FOUND"),
        (
            {"prompt": "x", "adapters": [{"adapter": str(n)} for n in range(5)]},
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
        ),
        ({"variables": {"values": {"a": "b"}}}, "INVALID_ARGUMENT", "NO_RECIPE"),
        ({"token_ids": {"values": [-1]}}, "INVALID_ARGUMENT", "INVALID_TOKEN"),
        ({"messages": {"values": []}}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
    ],
    ids=str,
)
async def test_bad_requests(
    served: Served,
    stubs: Stubs,
    fields: dict[str, object],
    code: str,
    reason: str,
) -> None:
    request = generation_pb2.GenerateRequest(**fields)  # type: ignore[arg-type]
    found_code, found_reason, message = await refusal(stubs[0].Generate(request))
    assert found_code is grpc.StatusCode[code], message
    assert found_reason == reason, message
    await still_serves(served)


async def still_serves(served: Served) -> None:
    """A good request is answered, and nothing of the bad one is left."""
    answer = await served.client.generate("hello", max_output_tokens=2, ignore_eos=True)
    assert answer.usage.output_tokens == 2
    assert served.server.uploads.num_running() == 0
    with pytest.raises(PolygraftError):
        await served.client.get_adapter("bad")
