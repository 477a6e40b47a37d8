"""Parts of the way of a GPU: what is captured asks for nothing, copies, memory, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import random_prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polygraft.adapters.errors import InvalidRequest
from polygraft.commands.failure import ExitCode, exit_code_of
from polygraft.server.engine.device.budget import DeviceNeeds, divide
from polygraft.server.engine.device.copies import AdapterCopies
from polygraft.server.engine.device.path import DevicePath, cuda_path
from polygraft.server.engine.device.runner import DeviceRunner
from polygraft.server.engine.device.shapes import COLUMN_CLASSES, WIDE, column_class
from polygraft.server.engine.messages import Sampling

if TYPE_CHECKING:
    from conftest import TinyBase

CPU = torch.device("cpu")
PATH = DevicePath(CPU, "reference")
KINDS = (None, "lora4", "rslora8", "patterns16", "soft")
NEEDS = DeviceNeeds(row_bytes=1000, block_bytes=500, working_bytes=100_000)
DEVICE: dict[str, Any] = {
    "total_bytes": 10_000_000,
    "free_bytes": 6_000_000,
    "memory_part": 0.9,
    "adapter_part": 0.2,
}


class Operators(TorchDispatchMode):
    """Which operators ran, and on what memory they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))


class QuietKernels:
    """Shapes only, in place of what a GPU launches."""

    def begin_step(self) -> None:
        pass

    def lora_linear(self, site: int, x: Tensor, weight: Tensor, *_: object) -> Tensor:
        return x.new_zeros(len(x), len(weight))

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> Tensor:
        return q.new_zeros(q.shape[0], q.shape[1], values.shape[2])


ASKING = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "item",
    "masked_select",
    "unique",
)


@pytest.mark.parametrize("columns", COLUMN_CLASSES)
def test_a_step_to_be_captured_asks_the_device_for_nothing(
    columns: int, tiny_base: TinyBase
) -> None:
    """An operator that waits for a number cannot be captured, nor one whose shape follows it."""
    harness = tiny_base.harness(path=PATH)
    runner = harness.engine._runner
    assert isinstance(runner, DeviceRunner)
    runner._kernels = QuietKernels()  # type: ignore[assignment]
    for site in runner.sites:
        site._work.kernels = QuietKernels()  # type: ignore[attr-defined]
    with Operators() as operators, torch.inference_mode():
        found = runner._padded_step(4, columns)
    assert found.logits.shape == (4, VOCAB)
    assert sum(operators.names.values()) > 50
    asked = [name for name in operators.names if any(f"::{a}" in name for a in ASKING)]
    assert asked == []


def test_sampled_tokens_equal_those_of_the_host(tiny_base: TinyBase) -> None:
    """The same logits up to rounding, the same numbers drawn, hence the same tokens."""
    sampling = Sampling(0.9, 0.95, 40, seed=5, min_p=0.001, repetition_penalty=1.2)
    answers = []
    for path in (None, PATH):
        harness = tiny_base.harness(path=path)
        for i, prompt in enumerate(random_prompts(10, vocab=VOCAB, seed=8)):
            kind = KINDS[i % len(KINDS)]
            harness.submit(str(i), prompt, adapter=kind, max_output_tokens=20, sampling=sampling)
        harness.run()
        harness.assert_clean()
        answers.append([harness.answers[str(i)].token_ids for i in range(10)])
    assert answers[0] == answers[1]
    assert harness.engine.stats().device["sampling"].keys() == {"device"}


def test_guessed_tokens_change_nothing(tiny_base: TinyBase) -> None:
    answers = []
    for speculation in ("off", "auto"):
        harness = tiny_base.harness(path=PATH, speculation=speculation)
        prompt = random_prompts(1, vocab=VOCAB, seed=8)[0] * 2
        for kind in KINDS:
            harness.submit(str(kind), prompt, adapter=kind, max_output_tokens=40)
            harness.run()
        answers.append([harness.answers[str(kind)].token_ids for kind in KINDS])
    assert answers[0] == answers[1]
    assert harness.engine.stats().speculation.accepted > 0


def test_scores_and_log_probabilities_come_from_the_host(tiny_base: TinyBase) -> None:
    entries = []
    for path in (None, PATH):
        harness = tiny_base.harness(path=path)
        for kind in KINDS:
            prompt = random_prompts(1, vocab=VOCAB, seed=8)[0]
            harness.submit(
                str(kind), prompt, adapter=kind, max_output_tokens=4, top_logprobs=2,
                prompt_logprobs=1,
            )  # fmt: skip
        harness.run()
        answers = [harness.answers[str(kind)] for kind in KINDS]
        entries.append([e for a in answers for e in (*a.logprobs, *a.prompt_logprobs)])
    assert [e.token_id for e in entries[0]] == [e.token_id for e in entries[1]]
    assert [e.rank for e in entries[0]] == [e.rank for e in entries[1]]
    expected = pytest.approx([e.logprob for e in entries[0]], abs=1e-4)
    assert [e.logprob for e in entries[1]] == expected


def test_adapters_come_and_go_while_others_run(tiny_base: TinyBase) -> None:
    """Rows of the pool are used again; nothing of a step is made anew for it."""
    harness = tiny_base.harness(path=PATH, pool_rows=64)
    prompt = random_prompts(1, vocab=VOCAB, seed=8)[0]
    expected = {}
    for kind in KINDS:
        harness.submit(str(kind), prompt, adapter=kind, max_output_tokens=12)
        harness.run()
        expected[kind] = harness.answers[str(kind)].token_ids
    harness.submit("runs", prompt, adapter="lora4", max_output_tokens=60)
    graphs = dict(harness.engine._runner._graphs)  # type: ignore[attr-defined]
    for i, kind in enumerate(("rslora8", "patterns16", "soft", "rslora8")):
        harness.adapters.unload(kind)
        harness.run_step()
        harness.adapters.load(kind, tiny_base.adapters[kind])
        harness.submit(f"again {i}", prompt, adapter=kind, max_output_tokens=12)
        for _ in range(6):
            harness.run_step()
    harness.run()
    assert harness.answers["runs"].token_ids[:12] == expected["lora4"]
    for i, kind in enumerate(("rslora8", "patterns16", "soft", "rslora8")):
        assert harness.answers[f"again {i}"].token_ids == expected[kind]
    assert harness.engine._runner._graphs == graphs  # type: ignore[attr-defined]


def test_a_row_that_is_not_finite_ends_alone(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness(path=PATH)
    harness.adapters.load("broken", tiny_base.adapters["lora4"], poison=torch.nan)
    prompt = random_prompts(1, vocab=VOCAB, seed=8)[0]
    for kind in (*KINDS, "broken"):
        harness.submit(str(kind), prompt, adapter=kind, max_output_tokens=12)
    harness.run()
    harness.assert_clean()
    assert harness.answers["broken"].error is not None
    alone = tiny_base.harness(path=PATH)
    for kind in KINDS:
        alone.submit(str(kind), prompt, adapter=kind, max_output_tokens=12)
    alone.run()
    for kind in KINDS:
        assert harness.answers[str(kind)].token_ids == alone.answers[str(kind)].token_ids


def test_the_class_of_columns_holds_them() -> None:
    assert [column_class(c, 16) for c in (0, 1, 64, 65, 5000)] == [0, 64, 64, 1024, 1024]
    assert column_class(2000, 1025) == WIDE


def test_copies_go_in_slices_whatever_their_size() -> None:
    copies = AdapterCopies(CPU, slice_bytes=64)
    source = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(9, 5, 3, dtype=torch.bfloat16)
    copies.copy(target[1:8], source)
    ids = copies.place(torch.arange(100), torch.bfloat16)
    copies.finish()
    assert torch.equal(target[1:8], source.bfloat16())
    assert not target[[0, 8]].any()
    assert torch.equal(ids, torch.arange(100))


def test_memory_is_divided() -> None:
    found = divide(NEEDS, pool_rows=None, kv_bytes=None, **DEVICE)
    left = 9_000_000 - 4_000_000 - 100_000
    assert found.pool_rows == int(left * 0.2) // 1000 // 16 * 16
    assert found.kv_bytes == left - found.pool_rows * 1000
    assert divide(NEEDS, pool_rows=64, kv_bytes=1000, **DEVICE).kv_bytes == 1000
    assert divide(NEEDS, pool_rows=64, kv_bytes=None, **DEVICE).kv_bytes == left - 64_000


@pytest.mark.parametrize(
    ("wanted", "changes"),
    [
        ({"pool_rows": 8000, "kv_bytes": None}, {}),
        ({"pool_rows": 64, "kv_bytes": 5_000_000}, {}),
        ({"pool_rows": None, "kv_bytes": None}, {"free_bytes": 1_050_000}),
        ({"pool_rows": None, "kv_bytes": None}, {"free_bytes": 0}),
    ],
)
def test_what_does_not_fit_is_refused(wanted: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="for keys and values") as refused:
        divide(NEEDS, **wanted, **{**DEVICE, **changes})
    assert refused.value.item == "engine.device_memory"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="finds no CUDA device") as refused:
        cuda_path("cuda")
    assert refused.value.item == "engine.device"
    assert exit_code_of(refused.value) is ExitCode.USAGE


def test_8_bit_weights_are_refused(tiny_base: TinyBase) -> None:
    with pytest.raises(InvalidRequest, match="8-bit weights"):
        tiny_base.harness(path=PATH, weight_format="int8")


def test_serving_from_a_cpu_needs_no_triton() -> None:
    """Whether it is installed or not: in this process it cannot be imported."""
    script = """
import sys
sys.modules["triton"] = None
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
engine = Engine.load("builtin:nano", EngineConfig(kv_bytes=1 << 22, pool_rows=16))
assert not any(name.startswith("triton.") for name in sys.modules)
assert engine.stats is not None
print("served")
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.stdout == "served\n", run.stderr
