"""Several adapters in one request equal PEFT with all of them active."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import Answer, Harness, random_prompts
from engine_support.peft_adapters import Generated, generate_composed, save_adapters
from peft import PeftModel
from tiny_models import byte_tokenizer, save_base
from tolerances import LOGITS_FP32
from transformers import AutoModelForCausalLM

from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.residency import Residency
from polygraft.adapters.weights import AdapterWeights, read_adapter
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    SequenceOutput,
    Stopping,
)

if TYPE_CHECKING:
    from conftest import TinyBase

NUM_TOKENS = 10
ARCHITECTURES = ("llama", "gpt2", "phi3", "gemma3", "gpt_neox", "opt")
COMPOSITIONS: tuple[Mapping[str, float], ...] = (
    {"lora4": 0.7, "patterns16": 1.5},
    {"lora4": 1.0, "rslora8": -0.8},
    {"lora4": 0.5, "patterns16": 0.3, "rslora8": 2.0},  # 16 rows each: takes 64
    {"lora4": 1.0, "soft": 1.0},
    {"patterns16": -0.5, "rslora8": 0.9, "soft": 1.0},
)
PROMPT = random_prompts(1, vocab=VOCAB, seed=9)[0]


def expected(base: Path, saved: Mapping[str, Path], weights: Mapping[str, float]) -> Generated:
    loras = {saved[name]: weight for name, weight in weights.items() if name != "soft"}
    soft = saved["soft"] if "soft" in weights else None
    return generate_composed(base, loras, PROMPT, NUM_TOKENS, soft_prompt=soft)


def assert_equal(answer: Answer, peft: Generated) -> None:
    assert answer.token_ids == peft[0]
    assert (torch.stack(answer.logits) - peft[1]).abs().max() <= LOGITS_FP32


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compositions_in_one_batch_equal_peft(
    architecture: str, native: bool, tmp_path: Path
) -> None:
    case = SERVED[architecture]
    base = save_base(tmp_path / "base", case.build(), byte_tokenizer())
    saved = save_adapters(base, tmp_path, case.names)
    harness = Harness(base, max_chunk=24, max_batch_tokens=64, native_kernels=native)
    for name, directory in saved.items():
        harness.adapters.load(name, directory)
    for i, weights in enumerate((*COMPOSITIONS, "lora4", None)):
        harness.submit(str(i), PROMPT, adapter=weights, max_output_tokens=NUM_TOKENS)
        harness.run_step()
    harness.run()
    harness.assert_clean()
    for i, weights in enumerate(COMPOSITIONS):
        assert_equal(harness.answers[str(i)], expected(base, saved, weights))
    first_logits = [harness.answers[str(i)].logits[0] for i in range(len(COMPOSITIONS) + 2)]
    assert torch.pdist(torch.stack(first_logits)).min() > 0.01, "two of them are the same"


def test_a_composition_equals_the_concatenated_adapter_of_peft(tiny_base: TinyBase) -> None:
    loras = [tiny_base.adapters[name] for name in ("lora4", "patterns16")]
    model = AutoModelForCausalLM.from_pretrained(tiny_base.base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, loras[0], adapter_name="a")
    peft.load_adapter(loras[1], adapter_name="b")
    peft.add_weighted_adapter(["a", "b"], [0.7, 1.5], "both", combination_type="cat")
    peft.set_adapter("both")
    with torch.inference_mode():
        logits = peft(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    harness = tiny_base.harness()
    harness.submit("r", PROMPT, adapter=COMPOSITIONS[0], max_output_tokens=1)
    harness.run()
    assert (harness.answers["r"].logits[0] - logits).abs().max() <= LOGITS_FP32


def test_a_composition_keeps_its_rows_while_others_come_and_go(tiny_base: TinyBase) -> None:
    """Stack slots are used again by compositions of other sizes; none may leave columns behind."""
    alone = tiny_base.harness(prefix_cache=False)
    weights = COMPOSITIONS[2]
    alone.submit("r", PROMPT, adapter=weights, max_output_tokens=NUM_TOKENS)
    alone.run()
    busy = tiny_base.harness(prefix_cache=False)
    for i in range(3):
        for j, other in enumerate((*COMPOSITIONS, "rslora8")):
            busy.submit(f"{i}.{j}", PROMPT, adapter=other, max_output_tokens=1 + (3 * j + i) % 5)
        busy.submit(f"r{i}", PROMPT, adapter=weights, max_output_tokens=NUM_TOKENS)
        busy.run_step()
    busy.run()
    for i in range(3):
        assert busy.answers[f"r{i}"].token_ids == alone.answers["r"].token_ids
        difference = torch.stack(busy.answers[f"r{i}"].logits) - torch.stack(
            alone.answers["r"].logits
        )
        assert difference.abs().max() <= 1e-5


def test_another_weight_shares_no_blocks_and_the_same_one_does(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    prompt = PROMPT * 3

    def cached(name: str, weights: Mapping[str, float]) -> int:
        harness.submit(name, prompt, adapter=weights, max_output_tokens=1)
        harness.run()
        return harness.answers[name].num_cached

    assert cached("first", {"lora4": 0.7, "rslora8": 1.0}) == 0
    assert cached("other weight", {"lora4": 0.8, "rslora8": 1.0}) == 0
    assert cached("one of them", {"lora4": 0.7}) == 0
    assert cached("other order", {"rslora8": 1.0, "lora4": 0.7}) == (len(prompt) - 1) // 16 * 16


def test_sets_that_do_not_fit_beside_each_other_are_all_served(tiny_base: TinyBase) -> None:
    """With threads and a pool of two places: nobody keeps one version and waits for the other."""
    sets = list(combinations(("lora4", "patterns16", "rslora8"), 2)) * 3
    plain = tiny_base.harness()
    for i, names in enumerate(sets[:3]):
        plain.submit(str(i), PROMPT, adapter=dict.fromkeys(names, 0.5))
    plain.run()

    config = EngineConfig(dtype="float32", threads=1, kv_bytes=1 << 22, pool_rows=32)
    engine = Engine.load(tiny_base.base, config)

    def read(digest: str) -> AdapterWeights:
        folder = tiny_base.adapters[digest]
        return read_adapter(folder, engine.geometry, AdapterLimits(), dtype=torch.float32)

    residency = Residency(
        read, engine.bank, host_bytes=1 << 20, on_change=engine.wake, patience=0.02
    )
    outputs: SimpleQueue[SequenceOutput] = SimpleQueue()
    engine.start(residency, lambda made: [outputs.put(output) for output in made])
    try:
        for i, names in enumerate(sets):
            residency.acquire(*names)
            shares = tuple(AdapterShare(name, 0.5) for name in names)
            request = EngineRequest(str(i), tuple(PROMPT), Stopping(8), adapters=shares)
            engine.submit(request)
        tokens: dict[str, list[int]] = defaultdict(list)
        num_running = len(sets)
        while num_running:
            output = outputs.get(timeout=30)
            assert output.error is None
            tokens[output.request_id] += output.token_ids
            num_running -= output.is_final
        engine.check_integrity()
        assert residency.total_references() == 0
        residency.check_integrity()
    finally:
        engine.stop()
        residency.close()
    for i in range(len(sets)):
        assert tokens[str(i)] == plain.answers[str(i % 3)].token_ids
