"""Training equals a loop written out with plain torch and PEFT: same rows, same order, AdamW."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny_models import tiny_llama
from torch import nn

from polygraft.trainer.collate import Collator
from polygraft.trainer.config import Full, Houlsby, Lora, Method, Prefix, RunConfig, Selective
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded
from polygraft.trainer.loop import make_trainer
from polygraft.trainer.methods import attach_unserved
from polygraft.trainer.methods.adapted import ChangedModel
from polygraft.trainer.methods.lora import attach_lora
from polygraft.trainer.methods.prefix import attach_prefix
from polygraft.trainer.sampler import LengthGroupedSampler

MakeConfig = Callable[..., RunConfig]
RATE = 0.01
BATCH = 4
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def rows() -> list[Encoded]:
    source = torch.Generator().manual_seed(3)
    made = []
    for number in range(16):
        ids = torch.randint(0, 256, (6 + number % 5,), generator=source).tolist()
        made.append(Encoded(Example(str(number), "g", {}, "", "here"), ids[:3], ids[3:]))
    return made


def ours(model: Any, method: Method, config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    settings = config.model_copy(update={"method": method})
    trainer = make_trainer(
        model, rows(), settings, learning_rate=RATE, collator=Collator(0), checkpoints=folder,
        callbacks=[],
    )  # fmt: skip
    trainer.train()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def plain(
    model: nn.Module, config: RunConfig, penalty: Callable[[], torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """One epoch of `accumulate` micro-batches a step; loss per token of the whole step."""
    data, accumulate = rows(), config.optim.accumulate
    sampler = LengthGroupedSampler([len(r.input_ids) for r in data], BATCH, config.seed)
    order = list(sampler)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for start in range(0, len(order), BATCH * accumulate):
        step = order[start : start + BATCH * accumulate]
        tokens = sum(len(data[i].completion) for i in step)
        optimizer.zero_grad()
        for first in range(0, len(step), BATCH):
            batch = Collator(0)([data[i] for i in step[first : first + BATCH]])
            labels = batch.pop("labels")
            logits = model(**batch).logits[:, -labels.shape[1] :]
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            (loss / tokens).backward()
        if penalty:
            penalty().backward()
        nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
    return {name: p.detach() for name, p in trained.items()}


@pytest.fixture(params=[1, 2])
def config(request: pytest.FixtureRequest, make_config: MakeConfig) -> RunConfig:
    optim = {"epochs": 1, "batch": BATCH, "schedule": "constant", "warmup_ratio": 0}
    return make_config(optim={**optim, "accumulate": request.param})


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert [tuple(t.shape) for t in found.values()] == [tuple(t.shape) for t in wanted.values()]
    for a, b in zip(found.values(), wanted.values(), strict=True):
        assert torch.allclose(a, b, atol=2e-5, rtol=1e-4), (a - b).abs().max()


@pytest.mark.parametrize(
    "extra", [{}, {"dora": True}, {"rslora": True}, {"layers": (-1,)}, {"kernel": "fused"}]
)
def test_lora_trains_as_plain_peft(
    config: RunConfig, tmp_path: Path, extra: dict[str, Any]
) -> None:
    method = Lora(r=4, targets="qv", **extra)
    theirs = LoraConfig(
        **LORA,
        use_dora=method.dora,
        use_rslora=method.rslora,
        layers_to_transform=[1] if method.layers else None,
    )
    model = tiny_llama()
    torch.manual_seed(0)
    wanted = plain(get_peft_model(model, theirs), config)
    found = ours(attach_lora(tiny_llama(), method, seed=0), method, config, tmp_path)
    assert_equal(found, wanted)


def test_prefix_trains_as_plain_peft(config: RunConfig, tmp_path: Path) -> None:
    method = Prefix(virtual_tokens=3)
    theirs = get_peft_model(
        tiny_llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    for name, parameter in theirs.named_parameters():
        if name.endswith("embedding.weight") and parameter.requires_grad:
            nn.init.zeros_(parameter)
    found = ours(attach_prefix(tiny_llama(), method, seed=0), method, config, tmp_path)
    assert_equal(found, plain(theirs, config))


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        (Full(), ""),
        (Full(l2sp=0.5), ""),
        (Selective(layers=(-1,), l2sp=0.5), "layers.1."),
        (Selective(params="norm"), "norm"),
    ],
)
def test_changed_weights_train_as_plain_torch(
    config: RunConfig, tmp_path: Path, method: Full | Selective, pattern: str
) -> None:
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(pattern in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]

    def penalty() -> torch.Tensor:
        pairs = zip(trained, start, strict=True)
        return method.l2sp * torch.stack([((p - p0) ** 2).sum() for p, p0 in pairs]).sum()

    wanted = plain(model, config, penalty if method.l2sp else None)
    found = ours(attach_unserved(tiny_llama(), method, seed=0), method, config, tmp_path)
    assert_equal(found, wanted)


@pytest.mark.parametrize("method", [Full(ewc=0.5), Selective(layers=(-1,), ewc=0.5, l2sp=0.2)])
def test_ewc_trains_as_plain_torch(
    config: RunConfig, tmp_path: Path, method: Full | Selective
) -> None:
    adapted = attach_unserved(tiny_llama(), method, seed=0)
    assert isinstance(adapted, ChangedModel)
    source = torch.Generator().manual_seed(5)
    fisher = {n: torch.rand(t.shape, generator=source) for n, t in adapted.trained_state().items()}
    adapted.weigh(fisher)
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in fisher)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}

    def penalty() -> torch.Tensor:
        squares = {name: (p - start[name]) ** 2 for name, p in trained.items()}
        weighed = torch.stack([(fisher[n] * s).sum() for n, s in squares.items()]).sum()
        return method.ewc * weighed + method.l2sp * sum(s.sum() for s in squares.values())

    wanted = plain(model, config, penalty)
    assert_equal(ours(adapted, method, config, tmp_path), wanted)


def test_houlsby_trains_as_bottlenecks_written_into_the_model(
    config: RunConfig, tmp_path: Path
) -> None:
    method = Houlsby(bottleneck=4)
    adapted = attach_unserved(tiny_llama(), method, seed=0)
    model = tiny_llama()
    model.requires_grad_(False)
    copies = []
    for number, layer in enumerate(model.model.layers):
        for where, sublayer in (("attention", layer.self_attn), ("mlp", layer.mlp)):
            own = adapted.get_submodule(f"bottlenecks.{number}_{where}")
            down, up = nn.Linear(64, 4), nn.Linear(4, 64)
            down.load_state_dict(own.get_submodule("down").state_dict())
            up.load_state_dict(own.get_submodule("up").state_dict())
            sublayer.add_module("bottleneck", nn.Sequential(down, nn.GELU(), up))
            copies.append(sublayer.get_submodule("bottleneck"))
            sublayer.forward = _with(sublayer.forward, copies[-1])
    wanted = plain(model, config)
    assert_equal(ours(adapted, method, config, tmp_path), wanted)


def _with(forward: Any, bottleneck: nn.Module) -> Any:
    def changed(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        if isinstance(output, tuple):
            return (output[0] + bottleneck(output[0]), *output[1:])
        return output + bottleneck(output)

    return changed
