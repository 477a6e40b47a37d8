"""Whole runs on chats, on plain text and through templates of the library."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from polygraft.adapters.manifest import parse_manifest
from polygraft.trainer.config import RunConfig
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.run import RunResult, train

MakeConfig = Callable[..., RunConfig]


def run(make_config: MakeConfig, tmp_path: Path, rows: list[object], **data: object) -> RunResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train(
        make_config(
            data={"train": str(path), "split": {}, **data},
            optim={"epochs": 1, "lr": 0.02, "batch": 32},
        )
    )


def test_a_run_on_chats_carries_no_recipe_for_requests_send_messages(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows: list[object] = [
        {"messages": [{"role": "user", "content": f"n{i}"}, {"role": "assistant", "content": "ok"}]}
        for i in range(60)
    ]
    result = run(make_config, tmp_path, rows)
    manifest = parse_manifest((result.directory / "manifest.json").read_bytes())
    assert manifest.prompt is None
    assert manifest.servable
    line = (result.directory / "predictions.test.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["messages"][0]["content"].startswith("n")


def test_a_run_on_text_is_scored_by_perplexity(
    make_config: MakeConfig, tmp_path: Path, tiny_base: Path
) -> None:
    result = run(make_config, tmp_path, [{"text": f"The cat {i} sat."} for i in range(80)])
    base, adapter = result.subjects
    measured = adapter.value("perplexity")
    assert measured is not None
    assert measured < (base.value("perplexity") or 0)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), result.directory / "adapter"
    )
    tokenizer = load_tokenizer(str(tiny_base))
    lines = (result.directory / "predictions.test.jsonl").read_text().splitlines()
    total, count = 0.0, 0
    for line in lines:
        ids = torch.tensor(
            [[*tokenizer.encode(json.loads(line)["reference"]), tokenizer.eos_token_id]]
        )
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
        total -= float(logits.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert measured == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_run_in_several_wordings_takes_finished_prompts(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows: list[object] = [{"ticket": f"t{i}", "team": "billing"} for i in range(60)]
    names = ["builtin:routing-team", "builtin:routing-label"]
    result = run(make_config, tmp_path, rows, template=names)
    manifest = parse_manifest((result.directory / "manifest.json").read_bytes())
    assert manifest.prompt is not None
    assert manifest.prompt.variables == ("prompt",)
