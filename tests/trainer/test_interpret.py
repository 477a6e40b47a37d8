"""Reading a soft prompt: the arithmetic against plain loops, chance against vectors of noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import byte_tokenizer
from typer.testing import CliRunner

from polygraft.cli import app
from polygraft.trainer.config import RunConfig, SoftPrompt
from polygraft.trainer.interpret import START_FILE, read_prompt
from polygraft.trainer.run import train

SOFT = {"kind": "prompt", "virtual_tokens": 6, "init": "text", "init_text": "Repeat it"}


def test_it_finds_the_tokens_that_were_put_in_and_nothing_in_noise() -> None:
    torch.manual_seed(0)
    vocabulary = torch.randn(200, 64)
    hidden = vocabulary[[65, 66, 67]] * torch.tensor([[0.1], [3.0], [1.0]])
    noise = torch.randn(40, 64)
    prompt = torch.cat([hidden + 0.02 * torch.randn(3, 64), noise])
    reading = read_prompt(prompt, vocabulary, byte_tokenizer(), start=prompt.flip(0))
    assert [token.nearest[0].token_id for token in reading.tokens[:3]] == [65, 66, 67]
    assert all(token.says_something for token in reading.tokens[:3])
    lucky = sum(token.says_something for token in reading.tokens[3:])
    assert lucky <= 6  # 40 / 21 are expected
    assert "read nothing into" in " ".join(reading.sentences())
    hidden_words = {byte_tokenizer().decode([token_id]) for token_id in (65, 66, 67)}
    assert {word for word, _ in reading.words()} >= hidden_words
    by_hand = max(
        float(prompt[5] @ row) / math.sqrt(float(prompt[5] @ prompt[5]) * float(row @ row))
        for row in vocabulary
    )
    assert reading.tokens[5].nearest[0].cosine == pytest.approx(by_hand, abs=1e-3)
    kept = torch.cosine_similarity(prompt[5], prompt.flip(0)[5], dim=0)
    assert reading.tokens[5].kept == pytest.approx(float(kept), abs=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "p_tuning"])
def test_a_run_keeps_its_start_and_is_read(
    kind: str, make_config: Callable[..., RunConfig], tiny_base: Path
) -> None:
    method = SOFT if kind == "prompt" else {"kind": kind, "virtual_tokens": 6}
    config = make_config(method=method, optim={"epochs": 1, "lr": 0.1})
    run = train(config, score_test=False).directory
    start = load_file(run / START_FILE)["prompt_embeddings"]
    if kind == "prompt":
        assert torch.equal(start, reconstructed(config))
    command = ["interpret", str(run), "--base", str(tiny_base), "--draws", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "cosine to their own start" in result.stdout
    assert (run / "soft_prompt.png").stat().st_size > 5000
    kept = json.loads((run / "soft_prompt.json").read_text())
    assert kept == json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    trained = load_file(run / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    cosines = torch.cosine_similarity(trained, start, dim=1)
    assert [token["kept"] for token in kept["tokens"]] == pytest.approx(cosines.tolist(), abs=1e-5)
    if kind == "prompt":
        began = "".join(token["start"]["text"] for token in kept["tokens"])
        assert began == "Repeat"


def reconstructed(config: RunConfig) -> torch.Tensor:
    """The start by the recipe alone: method, seed and base."""
    from polygraft.trainer.frozen_base import load_frozen_base, load_tokenizer
    from polygraft.trainer.methods.soft_prompt import initial_prompt

    assert isinstance(config.method, SoftPrompt)
    tokenizer = load_tokenizer(config.base.path)
    base = load_frozen_base(config.base.path, tokenizer, dtype="fp32", device="cpu")
    generator = torch.Generator().manual_seed(config.seed)
    return initial_prompt(base.model, tokenizer, config.method, generator, "")


def test_what_has_no_virtual_tokens_is_refused_by_name(
    make_config: Callable[..., RunConfig], tiny_base: Path, tmp_path: Path
) -> None:
    for kind, says in (("LORA", "no virtual tokens"), ("PREFIX_TUNING", "keys and values")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
        (folder / "adapter_model.safetensors").write_bytes(b"")
        result = CliRunner().invoke(app, ["interpret", str(folder)])
        assert (result.exit_code, says in result.stderr) == (5, True)
    assert CliRunner().invoke(app, ["interpret", str(tmp_path / "none")]).exit_code == 2
