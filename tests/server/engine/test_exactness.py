"""A mixed, joining and leaving batch equals PEFT's own generation of each request alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB, Case
from engine_support.harness import Harness, random_prompts
from engine_support.peft_adapters import NUM_VIRTUAL, generate_alone, save_adapters
from tiny_models import byte_tokenizer, save_base

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")
NUM_REQUESTS = 15
NUM_TOKENS = 12
MAX_LOGIT_DIFFERENCE = 1e-4


def _save(case: Case, directory: Path) -> Path:
    return save_base(directory, case.build(), byte_tokenizer())


@pytest.mark.parametrize("architecture", SERVED)
def test_mixed_batch_equals_peft_alone(architecture: str, tmp_path: Path) -> None:
    case = SERVED[architecture]
    base = _save(case, tmp_path / "base")
    saved = save_adapters(base, tmp_path, case.names)
    harness = Harness(base, max_chunk=24, max_batch_tokens=64)
    for name, directory in saved.items():
        harness.adapters.load(name, directory)

    prompts = random_prompts(NUM_REQUESTS, vocab=VOCAB, seed=3)
    kinds = [KINDS[i % len(KINDS)] for i in range(NUM_REQUESTS)]
    for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True)):
        harness.submit(str(i), prompt, adapter=kind, max_output_tokens=NUM_TOKENS)
        harness.run_step()  # requests join while others are in prefill or decode
        if i % 3 == 0:
            harness.run_step()
    harness.run()
    harness.assert_clean()

    effective = set()
    for kind in KINDS:
        mine = [i for i in range(NUM_REQUESTS) if kinds[i] == kind]
        directory = saved[kind] if kind else None
        expected = generate_alone(base, directory, [prompts[i] for i in mine], NUM_TOKENS)
        plain = generate_alone(base, None, [prompts[i] for i in mine], 1)
        for i, (token_ids, logits), (_, base_logits) in zip(mine, expected, plain, strict=True):
            answer = harness.answers[str(i)]
            assert answer.token_ids == token_ids, f"request {i} ({kind})"
            difference = (torch.stack(answer.logits) - logits).abs().max()
            assert difference <= MAX_LOGIT_DIFFERENCE, f"request {i} ({kind}): {difference}"
            if (base_logits[0] - logits[0]).abs().max() > 0.01:
                effective.add(kind)

    assert effective == set(saved), "an adapter changed nothing: the test proves nothing"


def test_chunk_may_end_inside_the_virtual_tokens(tmp_path: Path) -> None:
    case = SERVED["llama"]
    base = _save(case, tmp_path / "base")
    saved = save_adapters(base, tmp_path, case.names)
    prompt = random_prompts(1, vocab=VOCAB, seed=5)[0]
    expected = generate_alone(base, saved["soft"], [prompt], NUM_TOKENS)[0][0]
    for chunk in (1, NUM_VIRTUAL - 3, NUM_VIRTUAL, 64):
        harness = Harness(base, max_chunk=chunk)
        harness.adapters.load("soft", saved["soft"])
        harness.submit("r", prompt, adapter="soft", max_output_tokens=NUM_TOKENS)
        harness.run()
        assert harness.answers["r"].token_ids == expected, f"chunks of {chunk}"
