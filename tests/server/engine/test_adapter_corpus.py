"""Every adapter that PEFT can write equals PEFT's logits or is refused by name; none in part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from engine_support.adapter_cases import CASES
from engine_support.adapter_corpus import (
    ALL,
    BASES,
    Case,
    load_peft,
    logits_of,
    save_case,
    save_corpus_base,
)
from engine_support.harness import Answer, Harness, random_prompts
from tolerances import LOGITS_FP32
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from polygraft.adapters.errors import AdapterIncompatible, AdapterInvalid
from polygraft.adapters.features import FEATURES, Status
from polygraft.adapters.geometry import BaseGeometry
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.weights import read_adapter

NUM_TOKENS = 3
PAIRS = [(base, case) for case in CASES for base in case.bases]
Key = tuple[str, str]  # base, case


@dataclass(frozen=True)
class SavedBase:
    """A base, its adapters by the names of their cases, and the models they were trained in."""

    path: Path
    adapters: dict[str, Path]
    trained: dict[str, nn.Module]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SavedBase]:
    def save(name: str) -> SavedBase:
        directory = tmp_path_factory.mktemp(name)
        base = save_corpus_base(name, directory / "base")
        made = SavedBase(base, {}, {})
        for index, case in enumerate(CASES):
            if name in case.bases:
                made.adapters[case.name] = directory / str(index)
                model = save_case(case, name, base, made.adapters[case.name])
                if case.converts:
                    made.trained[case.name] = model
        return made

    return cache(save)


def served(base: str) -> list[Case]:
    return [case for case in CASES if base in case.bases and case.refused is None]


def prompt_of(index: int) -> list[int]:
    """Another one for each case, with the trained tokens in it."""
    (prompt,) = random_prompts(1, vocab=256, seed=index, longest=40)
    return [*prompt, 3, 17, 40, 2, 9, 200]


def computed(answer: Answer) -> Tensor:
    assert answer.error is None
    return torch.stack(answer.logits)


@pytest.mark.parametrize(
    ("base", "native"), [*((base, True) for base in BASES), *((base, False) for base in ALL)]
)
def test_what_is_accepted_equals_peft_in_one_mixed_batch(
    base: str, native: bool, saved: Callable[[str], SavedBase]
) -> None:
    """Prompt and output rows of every adapter, of each alone with PEFT; the base's among them."""
    made = saved(base)
    harness = Harness(
        made.path, native_kernels=native, max_chunk=11, max_batch_tokens=96, pool_rows=1024
    )
    plain = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    cases = served(base)
    for index, case in enumerate(cases):
        harness.adapters.load(case.name, made.adapters[case.name])
        for name, adapter in ((f"base {index}", None), (case.name, case.name)):
            harness.submit(
                name,
                prompt_of(index),
                adapter=adapter,
                max_output_tokens=NUM_TOKENS,
                prompt_logprobs=0,
            )
    harness.run()
    harness.assert_clean()
    for index, case in enumerate(cases):
        answer = harness.answers[case.name]
        ids = [*prompt_of(index), *answer.token_ids[:-1]]
        model = made.trained.get(case.name) or load_peft(made.path, made.adapters[case.name])
        expected = logits_of(model, ids)
        difference = (computed(answer) - expected).abs().max()
        assert difference <= LOGITS_FP32, f"{case.name}: {difference}"
        alone = logits_of(plain, ids)
        assert (expected - alone).abs().max() > 0.01, f"{case.name} does nothing"
        beside = harness.answers[f"base {index}"]
        untouched = logits_of(plain, [*prompt_of(index), *beside.token_ids[:-1]])
        assert (computed(beside) - untouched).abs().max() <= LOGITS_FP32


@pytest.mark.parametrize(
    ("base", "case"),
    [(base, case) for base, case in PAIRS if case.refused],
    ids=lambda value: value if isinstance(value, str) else value.name.replace(" ", "-"),
)
def test_what_is_refused_is_refused_by_name(
    base: str, case: Case, saved: Callable[[str], SavedBase]
) -> None:
    made = saved(base)
    assert case.refused is not None
    geometry = _geometry(made.path)
    with pytest.raises((AdapterInvalid, AdapterIncompatible), match=case.refused) as caught:
        read_adapter(
            made.adapters[case.name], geometry, AdapterLimits(max_rank=512), dtype=torch.float32
        )
    assert caught.value.hint or "|" in str(caught.value), "nothing is said about what to do"


@cache
def _geometry(base: Path) -> BaseGeometry:
    return Harness(base, native_kernels=False).engine.geometry


def test_every_feature_has_a_case() -> None:
    decided = {row.name for row in FEATURES if row.status is not Status.IGNORED}
    assert decided == {case.feature for case in CASES}


def test_the_corpus_has_the_size_that_was_promised() -> None:
    assert len(CASES) >= 40
    assert all(len(served(base)) >= 15 for base in ALL)
