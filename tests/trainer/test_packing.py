"""Packed rows give the loss and the gradients of padded ones, or packing is refused."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

from polygraft.trainer.collate import Collator
from polygraft.trainer.config import RunConfig
from polygraft.trainer.data import Example
from polygraft.trainer.encode import Encoded
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.packing import PackingCollator, best_fit, check_packing
from polygraft.trainer.run import train

MakeConfig = Callable[..., RunConfig]


def rows(*lengths: int, prompt: int = 3) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        made.append(Encoded(Example(str(number), "g", {}, "", "here"), ids[:prompt], ids[prompt:]))
    return made


def test_each_row_goes_into_the_fullest_sequence_that_has_room() -> None:
    assert best_fit([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert best_fit([12, 3], 10) == [[0], [1]]  # longer than the capacity: on its own
    for bin_ in best_fit(list(range(1, 40)), 41):
        assert sum(index + 1 for index in bin_) <= 41


def test_positions_restart_and_no_first_token_is_predicted_from_the_row_before() -> None:
    batch = PackingCollator(0, 9)(rows(5, 4, 3, prompt=0))
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, *range(6)]]
    assert [place for place, label in enumerate(batch["labels"][0].tolist()) if label == -100] == [
        0,
        5,
    ]
    assert "attention_mask" not in batch


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("prompt", [3, 0])
@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_packed_loss_and_gradients_equal_padded_ones(
    make_model: Callable[[], Any], prompt: int
) -> None:
    model = make_model().requires_grad_(True)
    batch = rows(9, 5, 7, 4, 12, prompt=prompt)
    packed = PackingCollator(0, 21)(batch)
    assert len(packed["input_ids"]) == 2
    loss, gradients = loss_and_gradients(model, packed)
    padded_loss, padded = loss_and_gradients(model, Collator(0)(batch))
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, padded[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_packed_run_is_the_padded_run(make_config: MakeConfig, accumulate: int) -> None:
    def weights(packing: bool) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        data = {**make_config().data.model_dump(mode="json"), "packing": packing}
        optim = {"epochs": 1, "lr": 0.01, "accumulate": accumulate}
        made = train(make_config(data=data, optim=optim), score_test=False)
        return load_file(made.directory / "adapter" / "adapter_model.safetensors")

    packed, padded = weights(True), weights(False)
    assert all(torch.allclose(packed[n], padded[n], rtol=1e-3, atol=1e-5) for n in padded)


def tiny_bloom() -> BloomForCausalLM:
    """Biases attention by the distance in the sequence, whatever the positions say."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=264, hidden_size=32, n_layer=2, n_head=4)
    return BloomForCausalLM(config).eval()


def tiny_mamba() -> MambaForCausalLM:
    """Carries a state from row to row."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config).eval()


@pytest.mark.parametrize("make_model", [tiny_bloom, tiny_mamba])
def test_an_architecture_that_mixes_packed_rows_is_refused(make_model: Callable[[], Any]) -> None:
    with pytest.raises(RecipeError, match=r"data\.packing: .*does not keep packed rows apart"):
        check_packing(make_model(), 256)


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_an_architecture_that_keeps_them_apart_is_taken(make_model: Callable[[], Any]) -> None:
    check_packing(make_model(), 256)
    check_packing(make_model().bfloat16(), 256)


def test_what_stands_in_front_of_a_row_cannot_be_packed(make_config: MakeConfig) -> None:
    data = {**make_config().data.model_dump(mode="json"), "packing": True}
    with pytest.raises(RecipeError, match="packing does not go with prompt"):
        make_config(data=data, method={"kind": "prompt"})


def test_the_same_seed_gives_the_same_packed_adapter(make_config: MakeConfig) -> None:
    data = {**make_config().data.model_dump(mode="json"), "packing": True}

    def digest() -> str:
        made = train(make_config(data=data, optim={"epochs": 1, "batch": 48}), score_test=False)
        content = (made.directory / "adapter" / "adapter_model.safetensors").read_bytes()
        return hashlib.sha256(content).hexdigest()

    assert digest() == digest()
