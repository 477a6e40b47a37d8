"""The probes file: what is written is read back, and whatever is not probes is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polygraft.adapters.errors import AdapterInvalid
from polygraft.adapters.probes import Probes, pad_inputs, read_probes, write_probes

VOCAB, COUNT = 40, 3


def make() -> Probes:
    generator = torch.Generator().manual_seed(0)
    input_ids, input_len = pad_inputs([range(9), range(20), range(12)])
    logits = torch.randn(COUNT, 8, VOCAB, generator=generator).log_softmax(-1)
    other = torch.randn(COUNT, 8, VOCAB, generator=generator).log_softmax(-1)
    top = logits.topk(32)
    return Probes(
        input_ids=input_ids,
        input_len=input_len,
        top_ids=top.indices.int(),
        top_logprobs=top.values,
        base_top_logprobs=other.gather(-1, top.indices),
        greedy_ids=torch.randint(VOCAB, (COUNT, 16), generator=generator).int(),
        greedy_margin=torch.rand(COUNT, 16, generator=generator),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    probes, path = make(), tmp_path / "probes.safetensors"
    write_probes(probes, path)
    read = read_probes(path, count=COUNT, vocab_size=VOCAB)
    for name in Probes.__slots__:
        assert torch.equal(getattr(read, name), getattr(probes, name))
    assert read.prompt(0) == tuple(range(9))
    assert read.wanted(2)[7] == tuple(probes.top_ids[2, 7].tolist())


def test_equal_probes_are_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_probes(make(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("input_ids", (0, 0), VOCAB),
        ("input_ids", (0, 0), -1),
        ("input_len", (0,), 7),
        ("input_len", (0,), 21),
        ("top_ids", (0, 0, 0), VOCAB),
        ("greedy_ids", (0, 0), -1),
        ("top_logprobs", (0, 0, 0), float("nan")),
        ("base_top_logprobs", (0, 0, 0), float("-inf")),
        ("greedy_margin", (0, 0), float("inf")),
        ("greedy_margin", (0, 0), -0.1),
        ("top_logprobs", (0, 0, 0), 0.2),
    ],
)
def test_a_value_that_no_probe_has_is_refused(
    name: str, place: tuple[int, ...], value: float, tmp_path: Path
) -> None:
    probes, path = make(), tmp_path / "probes.safetensors"
    getattr(probes, name)[place] = value
    write_probes(probes, path)
    with pytest.raises(AdapterInvalid) as caught:
        read_probes(path, count=COUNT, vocab_size=VOCAB)
    assert caught.value.item == name


def test_a_token_listed_twice_is_refused(tmp_path: Path) -> None:
    probes, path = make(), tmp_path / "probes.safetensors"
    probes.top_ids[1, 1, 0] = probes.top_ids[1, 1, 5]
    write_probes(probes, path)
    with pytest.raises(AdapterInvalid, match="top_ids"):
        read_probes(path, count=COUNT, vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("input_len", torch.ones(COUNT, dtype=torch.int64)),
        ("input_len", torch.ones(COUNT + 1, dtype=torch.int32)),
        ("top_logprobs", torch.zeros(COUNT, 8, 31)),
        ("greedy_margin", torch.zeros(COUNT, 16, dtype=torch.float16)),
        ("input_ids", torch.zeros(COUNT, 300, dtype=torch.int32)),
        ("input_ids", torch.zeros(COUNT, dtype=torch.int32)),
    ],
)
def test_another_dtype_or_shape_is_refused(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "probes.safetensors"
    write_probes(replace(make(), **{name: tensor}), path)
    with pytest.raises(AdapterInvalid) as caught:
        read_probes(path, count=COUNT, vocab_size=VOCAB)
    assert caught.value.item == name


def test_a_tensor_too_few_or_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probes.safetensors"
    write_probes(make(), path)
    tensors = load_file(path)
    few = {name: tensor for name, tensor in tensors.items() if name != "greedy_ids"}
    for wrong in (few, {**few, "greedy_tokens": tensors["greedy_ids"]}):
        save_file(wrong, path)
        with pytest.raises(AdapterInvalid, match="tensors"):
            read_probes(path, count=COUNT, vocab_size=VOCAB)


@pytest.mark.parametrize("count", [0, 2, 9])
def test_the_manifest_says_how_many_there_are(count: int, tmp_path: Path) -> None:
    path = tmp_path / "probes.safetensors"
    write_probes(make(), path)
    with pytest.raises(AdapterInvalid):
        read_probes(path, count=count, vocab_size=VOCAB)
