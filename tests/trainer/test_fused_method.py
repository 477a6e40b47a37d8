"""LoRA trained through the fused operator against PEFT's own layers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import tiny_gpt2, tiny_llama
from tolerances import relative_error
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from polygraft.trainer.config import Lora, RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.methods.fused import _refuse_device, use_fused
from polygraft.trainer.methods.lora import attach_lora
from polygraft.trainer.run import train

FUSED = "polygraft::lora_linear"


class CountCalls(TorchDispatchMode):
    """How often each operator was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def tiny_qwen() -> Any:
    """Two layers whose query, key and value have a bias."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def pair(make: Callable[[], Any], **method: Any) -> tuple[Any, Any]:
    """The same LoRA, B not zero, through PEFT's layers and through the operator."""
    models = []
    for kernel in ("peft", "fused"):
        model = attach_lora(make(), Lora.model_validate({"kernel": kernel, **method}), seed=0)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        models.append(model.train())
    return models[0], models[1]


def step(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch with padding."""
    ids = torch.arange(36).view(3, 12) % 61 + 1
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen])
@pytest.mark.parametrize(
    "method",
    [
        {"r": 4},
        {"r": 24, "rslora": True, "targets": "attention"},
        {"r": 8, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"o_proj": 64}, "layers": (-1,)},
    ],
)
def test_loss_and_gradients_are_those_of_peft(make: Any, method: dict[str, Any]) -> None:
    plain, fused = pair(make, **method)
    (wanted_loss, wanted), (loss, found) = step(plain), step(fused)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert relative_error(gradient, wanted[name]) < 5e-5, name


def test_every_adapted_layer_goes_through_the_operator() -> None:
    plain, fused = pair(tiny_llama, r=4)
    with CountCalls() as count:
        step(fused)
    layers = sum("lora_B" in name for name, _ in plain.named_parameters())
    # The first layer's input wants no gradient, as long as embeddings are frozen: q, k and v.
    backward = {"_dx": layers - 3, "_dpools": layers, "": layers}
    assert {suffix: count.calls[FUSED + suffix] for suffix in backward} == backward


def test_a_bfloat16_base_trains_to_its_precision() -> None:
    plain, fused = pair(lambda: tiny_llama().to(torch.bfloat16), r=4)
    (wanted_loss, wanted), (loss, found) = step(plain), step(fused)
    assert loss == pytest.approx(wanted_loss, rel=1e-2)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, wanted[name]) < 0.05, name


def test_switched_off_it_is_the_base_to_the_bit() -> None:
    _, fused = pair(tiny_llama, r=4)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), fused.disable_adapter():
        assert torch.equal(fused(input_ids=ids).logits, tiny_llama()(ids).logits)


def test_what_is_saved_is_plain_peft(tmp_path: Path) -> None:
    plain, fused = pair(tiny_llama, r=4)
    for name, model in (("plain", plain), ("fused", fused)):
        model.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("plain", "fused")]
    assert files[0].read_bytes() == files[1].read_bytes()
    configs = [
        json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("plain", "fused")
    ]
    for config in configs:
        config["target_modules"].sort()  # PEFT writes a set
    assert configs[0] == configs[1]
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "fused"))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, fused(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"dropout": 0.1}, "no dropout"),
        ({"dora": True}, "DoRA"),
    ],
)
def test_settings_that_the_operator_lacks_are_refused(method: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        attach_lora(tiny_llama(), Lora(kernel="fused", **method), seed=0)
    assert caught.value.item == "method.kernel"
    assert "Take kernel: peft" in str(caught.value)


def test_a_transposed_layer_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        attach_lora(tiny_gpt2(), Lora(kernel="fused", r=2), seed=0)


@pytest.mark.parametrize(
    ("device", "dtype", "says"),
    [("cuda", torch.float32, "weights of 16 bits"), ("mps", torch.bfloat16, "no tiles for mps")],
)
def test_a_device_that_it_has_no_tiles_for_is_refused(
    device: str, dtype: torch.dtype, says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        _refuse_device(torch.device(device), dtype)


def test_a_refused_model_keeps_pefts_layers() -> None:
    model = attach_lora(tiny_llama(), Lora(r=2), seed=0)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(RecipeError):
        use_fused(model, Lora(r=2, dropout=0.5))
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_recipe_trains_through_it(make_config: Callable[..., RunConfig]) -> None:
    """The same run, step by step, with either kernel."""
    losses, tensors = {}, {}
    for kernel in ("peft", "fused"):
        config = make_config(
            name=kernel,
            method={"kind": "lora", "r": 4, "kernel": kernel},
            optim={"epochs": 1, "lr": 0.01},
            eval={"generate": {"rows": 1, "max_new_tokens": 1}},
            runtime={"account_memory": kernel == "fused"},
        )
        result = train(config, score_test=False)
        lines = (result.directory / "metrics.jsonl").read_text().splitlines()
        losses[kernel] = [r["loss"] for r in map(json.loads, lines) if "loss" in r]
        tensors[kernel] = load_file(result.directory / "adapter" / "adapter_model.safetensors")
    assert len(losses["peft"]) > 3
    assert losses["fused"] == pytest.approx(losses["peft"], rel=1e-3)
    for name, tensor in tensors["peft"].items():
        assert torch.allclose(tensors["fused"][name], tensor, atol=2e-4), name
