"""Methods beyond LoRA and soft prompts: whole runs, what they leave alone, what is said at push."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama
from transformers import PreTrainedModel

from polygraft.adapters.errors import AdapterUnsupported
from polygraft.adapters.manifest import parse_manifest
from polygraft.client.upload import UploadSource
from polygraft.trainer.config import Full, Houlsby, Lora, RunConfig, Selective
from polygraft.trainer.errors import Interrupted, RecipeError
from polygraft.trainer.local import load_candidate
from polygraft.trainer.methods import attach_unserved
from polygraft.trainer.methods.lora import attach_lora
from polygraft.trainer.progress import Silent
from polygraft.trainer.recipe import load_resolved
from polygraft.trainer.run import train
from polygraft.trainer.source import load_source

MakeConfig = Callable[..., RunConfig]
SERVED: dict[str, dict[str, Any]] = {
    "dora": {"kind": "lora", "r": 2, "dora": True, "rank_pattern": {"q_proj": 3}},
    "prefix": {"kind": "prefix", "virtual_tokens": 4},
    "p_tuning": {"kind": "p_tuning", "virtual_tokens": 4, "encoder_hidden_size": 16},
}
UNSERVED: dict[str, dict[str, Any]] = {
    "houlsby": {"kind": "houlsby", "bottleneck": 4},
    "selective": {"kind": "selective", "layers": [-1]},
    "full": {"kind": "full", "l2sp": 0.01},
}
ALL = {**SERVED, **UNSERVED}
IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.mark.parametrize("kind", ALL)
def test_a_run_writes_what_can_be_scored_again(
    make_config: MakeConfig, tiny_base: Path, kind: str
) -> None:
    config = make_config(method=ALL[kind], optim={"epochs": 1, "lr": 0.01, "batch": 32})
    result = train(config)
    manifest = parse_manifest((result.directory / "manifest.json").read_bytes())
    assert manifest.servable is (kind in SERVED)
    assert manifest.method is not None
    assert manifest.method.name == ALL[kind]["kind"]
    assert manifest.probes is None or kind in SERVED
    candidate = load_candidate(result.directory, str(tiny_base))
    source = load_source(config.data).with_prompt(candidate.prompt or {})
    lines = (result.directory / "predictions.test.jsonl").read_text().splitlines()
    answers = candidate.ask_adapter(source.prompt, source.splits.test)
    assert [json.loads(line)["adapter"] for line in lines] == [answer.text for answer in answers]
    answers = candidate.ask_base(source.prompt, source.splits.test)
    assert [json.loads(line)["base"] for line in lines] == [answer.text for answer in answers]


@pytest.mark.parametrize("kind", UNSERVED)
def test_what_no_server_computes_is_refused_before_anything_is_sent(
    make_config: MakeConfig, kind: str
) -> None:
    config = make_config(method=UNSERVED[kind], optim={"epochs": 1, "lr": 0.01, "batch": 64})
    result = train(config, score_test=False)
    with pytest.raises(AdapterUnsupported, match=r"it cannot be served: .*(Houlsby|base)"):
        UploadSource.open(result.directory)


@pytest.mark.parametrize("kind", ALL)
def test_a_resumed_run_gives_the_same_bytes(make_config: MakeConfig, kind: str) -> None:
    import os
    import signal

    class PressCtrlC(Silent):
        def stepped(self, step: int, loss: float) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    config = make_config(method=ALL[kind], optim={"epochs": 2, "lr": 0.01, "batch": 24})
    whole = train(config, score_test=False)
    with pytest.raises(Interrupted):
        train(config, PressCtrlC(), score_test=False)
    (kept,) = config.output.glob("*.interrupted")
    resumed = train(load_resolved(kept), score_test=False, resume=kept)
    name = "adapter/adapter_model.safetensors"
    assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@torch.no_grad()
def test_a_fresh_houlsby_changes_no_bit_and_can_be_detached(
    make: Callable[[], PreTrainedModel],
) -> None:
    base = make()(IDS).logits
    adapted = attach_unserved(make(), Houlsby(bottleneck=4), seed=0).eval()
    assert torch.equal(adapted(input_ids=IDS).logits, base)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter += 0.1
    assert not torch.equal(adapted(input_ids=IDS).logits, base)
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=IDS).logits, base)
    assert not torch.equal(adapted(input_ids=IDS).logits, base)


@torch.no_grad()
def test_a_changed_base_can_be_had_back_to_the_bit() -> None:
    base = tiny_llama()(IDS).logits
    adapted = attach_unserved(tiny_llama(), Full(), seed=0).eval()
    for parameter in adapted.parameters():
        parameter *= 1.01
    changed = adapted(input_ids=IDS).logits
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=IDS).logits, base)
    assert torch.equal(adapted(input_ids=IDS).logits, changed)


def trained(method: Houlsby | Selective) -> set[str]:
    return set(attach_unserved(tiny_llama(), method, seed=0).trained_state())


def test_layers_and_parameters_are_chosen_as_said() -> None:
    assert {name.split(".")[2] for name in trained(Selective(layers=(-1,)))} == {"1"}
    assert all("norm" in name for name in trained(Selective(params=r"norm\.weight$")))
    houlsby = trained(Houlsby(bottleneck=2, where=("mlp",), layers=(0,)))
    assert {name.split(".")[1] for name in houlsby} == {"0_mlp"}
    model = attach_lora(tiny_llama(), Lora(targets="mlp", layers=(1,), r=2), seed=0)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".layers.1.mlp." in name for name in names)
    assert len(names) == 6


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Selective(layers=(2,)), "0 to 1 or -2 to -1"),
        (Selective(params="nothing"), "no parameter matches"),
        (Houlsby(layers=(-3,)), "has 2 layers"),
    ],
)
def test_what_the_base_does_not_have_is_named(method: Selective | Houlsby, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        attach_unserved(tiny_llama(), method, seed=0)


def test_bf16_weights_are_not_trained_themselves() -> None:
    with pytest.raises(RecipeError, match=r"base\.dtype"):
        attach_unserved(tiny_llama().bfloat16(), Full(), seed=0)
