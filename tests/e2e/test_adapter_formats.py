"""Adapters of every served form, from upload to answer over gRPC: validated in their own process,
tried by the engine, published, loaded, and equal to PEFT."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_support.adapter_cases import CASES
from engine_support.adapter_corpus import load_peft, logits_of, save_case
from engine_support.harness import random_prompts

from polygraft.client import InvalidRequest

if TYPE_CHECKING:
    from conftest import Served

NUM_TOKENS = 6
PROMPT = [*random_prompts(1, vocab=256, seed=12)[0], 3, 17, 40]
FEATURES = {
    "lora_bias": ["lora_bias"],
    "trainable tokens": ["trainable_token_indices"],
    "dora everywhere": ["use_dora"],
    "LoRA on nothing but the output head": ["lm_head"],
    "LoRA on both, with copies of them": ["embedding", "lm_head"],
    "embedding trained in full": ["modules_to_save"],
    "head trained in full": ["modules_to_save"],
    "norms of the layers trained in full": ["modules_to_save"],
}


async def test_each_is_published_and_answers_as_peft_would(served: Served, tmp_path: Path) -> None:
    by_name = {case.name: case for case in CASES}
    folders = {}
    for index, name in enumerate(FEATURES):
        folders[f"form{index}"] = tmp_path / str(index)
        save_case(by_name[name], "llama", served.saved.base, tmp_path / str(index))
        await served.push(f"form{index}", tmp_path / str(index))
    answers = await asyncio.gather(
        *(
            served.client.generate(
                token_ids=PROMPT,
                adapter=name,
                max_output_tokens=NUM_TOKENS,
                ignore_eos=True,
                top_logprobs=0,
                return_token_ids=True,
            )
            for name in folders
        )
    )
    for (name, folder), features, answer in zip(
        folders.items(), FEATURES.values(), answers, strict=True
    ):
        adapter = await served.client.get_adapter(name)
        assert adapter.version is not None
        assert json.loads(adapter.version.manifest_json)["format"]["features"] == features
        ids = [*PROMPT, *answer.token_ids]
        expected = logits_of(load_peft(served.saved.base, folder), ids).double().log_softmax(-1)
        rows = expected[len(PROMPT) - 1 : -1]
        assert list(answer.token_ids) == rows.argmax(-1).tolist(), name
        assert [entry.logprob for entry in answer.logprobs] == pytest.approx(
            [float(row[t]) for row, t in zip(rows, answer.token_ids, strict=True)], abs=1e-3
        )
    await served.push("plain", served.saved.adapters["lora4"])
    with pytest.raises(InvalidRequest, match="changes more than low-rank updates"):
        await served.client.generate("Hi", adapters={"form2": 1.0, "plain": 1.0})
