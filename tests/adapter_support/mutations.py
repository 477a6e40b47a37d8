"""Good adapters made bad in one place, by a seed; and what PEFT reads in those that it reads."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PromptTuningConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import load, save
from torch import Tensor, nn

from adapter_support.directories import (
    HIDDEN,
    MODULE,
    PREFIX,
    lora_config,
    lora_tensors,
    peft_warnings_ignored,
)

DOWN = "model.layers.0.mlp.down_proj"
PROMPT = "prompt_embeddings"
NUMBERS = (None, True, 0, -1, -2, 1, 3, 2**31, 10**6, 1e-45, 1e300, 0.1, 2**64, 10**30)
ODD = ("", "NaN", "x" * 5000, "../../etc/passwd", "\0", "\u202e", [], [[]], {}, {"a": 1}, [None])
DTYPES = ("F64", "I8", "BOOL", "F16", "BF16", "F8_E4M3", "I64", "f32", "", None, 7)


@dataclass(frozen=True)
class Bare:
    """The two files of an adapter as bytes."""

    config: bytes
    weights: bytes

    def write(self, directory: Path) -> dict[str, Path]:
        """The same as files by name."""
        directory.mkdir(parents=True, exist_ok=True)
        config, weights = directory / "adapter_config.json", directory / "adapter_model.safetensors"
        config.write_bytes(self.config)
        weights.write_bytes(self.weights)
        return {config.name: config, weights.name: weights}


def good_lora() -> Bare:
    """A LoRA on two modules."""
    tensors = lora_tensors() | lora_tensors(module=DOWN, seed=1)
    config = lora_config(target_modules=["down_proj", "q_proj"])
    return Bare(json.dumps(config).encode(), save(tensors))


def good_prompt() -> Bare:
    """A soft prompt of four tokens."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=HIDDEN)
    tensors = {PROMPT: torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3))}
    return Bare(json.dumps(config.to_dict()).encode(), save(tensors))


def split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a safetensors file."""
    (length,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def join(header: Mapping[str, Any] | bytes, payload: bytes) -> bytes:
    """A safetensors file, with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def mutate(good: Bare, seed: int) -> tuple[str, Bare]:
    """What was done, and the result, which is never the same bytes."""
    dice = random.Random(seed)
    while True:
        kind = dice.choice(list(MUTATIONS))
        mutant = MUTATIONS[kind](good, dice)
        if mutant != good:
            return kind, mutant


def _value(dice: random.Random) -> Any:
    return dice.choice(NUMBERS + ODD)


def _config_value(good: Bare, dice: random.Random) -> Bare:
    config = json.loads(good.config)
    config[dice.choice(sorted(config))] = _value(dice)
    return Bare(json.dumps(config).encode(), good.weights)


def _config_raw(good: Bare, dice: random.Random) -> Bare:
    """A value that Python's own writer would not make."""
    config = json.loads(good.config)
    key = dice.choice(sorted(config))
    config[key] = "@"
    raw = dice.choice(
        ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 3000, '"\\ud800"', "01", "-0"]
    )
    return Bare(json.dumps(config).replace('"@"', raw).encode(), good.weights)


def _config_key(good: Bare, dice: random.Random) -> Bare:
    """A key is doubled, dropped, renamed or new."""
    config = json.loads(good.config)
    key, action = dice.choice(sorted(config)), dice.randrange(4)
    if action == 0:
        again = json.dumps({key: config[key]})[1:-1]
        return Bare(good.config[:-1] + f", {again}}}".encode(), good.weights)
    value = config.pop(key)
    if action == 1:
        config[key[:-1] + "?"] = value
    elif action == 2:
        config |= {key: value, f"new_{dice.randrange(99)}": _value(dice)}
    return Bare(json.dumps(config).encode(), good.weights)


def _flip(data: bytes, dice: random.Random, start: int = 0, end: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        changed[dice.randrange(start, end or len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(data: bytes, dice: random.Random) -> bytes:
    at, length = dice.randrange(len(data)), dice.choice((1, 2, 7, 100))
    junk = dice.randbytes(dice.randrange(20))
    return dice.choice((data[:at], data[:at] + data[at + length :], data[:at] + junk + data[at:]))


def _config_bytes(good: Bare, dice: random.Random) -> Bare:
    return Bare(dice.choice((_flip, _cut))(good.config, dice), good.weights)


def _weights_cut(good: Bare, dice: random.Random) -> Bare:
    return Bare(good.config, _cut(good.weights, dice))


def _header_flip(good: Bare, dice: random.Random) -> Bare:
    return Bare(good.config, _flip(good.weights, dice, 0, len(good.weights) - len(_payload(good))))


def _payload_flip(good: Bare, dice: random.Random) -> Bare:
    start = len(good.weights) - len(_payload(good))
    return Bare(good.config, _flip(good.weights, dice, start))


def _payload(good: Bare) -> bytes:
    return split(good.weights)[1]


def _header_entry(good: Bare, dice: random.Random) -> Bare:
    """One field of one tensor."""
    header, payload = split(good.weights)
    entry = header[dice.choice([name for name in header if name != "__metadata__"])]
    action = dice.randrange(4)
    if action == 0:
        entry["dtype"] = dice.choice(DTYPES)
    elif action == 1:
        shape = list(entry["shape"])
        other = (0, -1, 1, 10**6, 2**63, True, 1.5, shape[-1] * 2)
        entry["shape"] = dice.choice(
            ([], shape[::-1], [shape[0] * shape[1]], [dice.choice(other), shape[1]], [[1]], None)
        )
    elif action == 2:
        entry["data_offsets"][dice.randrange(2)] += dice.choice((-4, -1, 1, 4, 2**40, -(2**40)))
    else:
        entry[dice.choice(("dtype", "shape", "data_offsets", "more"))] = _value(dice)
    return Bare(good.config, join(header, payload))


def _header_name(good: Bare, dice: random.Random) -> Bare:
    """A tensor is renamed, dropped, doubled or added."""
    header, payload = split(good.weights)
    name = dice.choice([name for name in header if name != "__metadata__"])
    action = dice.randrange(5)
    if action == 0:
        again = json.dumps({name: header[name]})[1:-1]
        return Bare(
            good.config, join(json.dumps(header)[:-1].encode() + f",{again}}}".encode(), payload)
        )
    if action == 1:
        entry = header[name]
        header["extra"] = {**entry, "data_offsets": [len(payload), len(payload)], "shape": [0]}
        return Bare(good.config, join(header, payload))
    if action == 2:
        header["__metadata__"] = dice.choice((_value(dice), {"a": 1}, {"a": "x" * 70_000}))
        return Bare(good.config, join(header, payload))
    tensors = load(good.weights)
    value = tensors.pop(name)
    if action == 3:
        changes: list[Callable[[str], str]] = [
            lambda n: n.replace("base_model.model.", ""),
            lambda n: n.replace("lora_A", "lora_A.default"),
            lambda n: n.replace("q_proj", "k_proj"),
            lambda n: n.replace("layers.0", "layers.7"),
            lambda n: n.replace(".weight", ".bias"),
            lambda n: n + "\0",
            lambda n: "../" + n,
            lambda n: n.upper(),
            lambda n: n + ".x" * 200,
            lambda n: "",
        ]
        tensors[dice.choice(changes)(name)] = value
    return Bare(good.config, save(tensors))


def _tensor_value(good: Bare, dice: random.Random) -> Bare:
    """One number, one dtype or one shape of a tensor, in a file that is well-formed."""
    tensors = load(good.weights)
    name = dice.choice(sorted(tensors))
    value = tensors[name].clone()
    action = dice.randrange(4)
    if action == 0:
        odd = (float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-44)
        value[dice.randrange(value.shape[0]), 0] = dice.choice(odd)
    elif action == 1:
        dtypes = (torch.float64, torch.int8, torch.bool, torch.float16, torch.int64)
        value = value.to(dice.choice(dtypes))
    elif action == 2:
        value = dice.choice((value[:1], value[:, :1], value.T, value[None], torch.cat([value] * 2)))
    else:
        value = value * dice.choice((0.0, 1e30, 1e38, -1.0))
    return Bare(good.config, save({**tensors, name: value.contiguous()}))


MUTATIONS: Mapping[str, Callable[[Bare, random.Random], Bare]] = {
    "config value": _config_value,
    "config raw value": _config_raw,
    "config key": _config_key,
    "config bytes": _config_bytes,
    "weights cut": _weights_cut,
    "header bits": _header_flip,
    "payload bits": _payload_flip,
    "header entry": _header_entry,
    "tensor name": _header_name,
    "tensor value": _tensor_value,
}


class _Paper(nn.Module):
    """The base of `small_geometry`, with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "paper"}
        layer = nn.Module()
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()  # type: ignore[assignment]
        layer.self_attn.q_proj = nn.Linear(HIDDEN, 4, bias=False)
        layer.mlp.down_proj = nn.Linear(16, HIDDEN, bias=False)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([layer])


def peft_reading(bare: Bare) -> dict[str, Tensor]:
    """What PEFT applies: the change of each module's weight in float32, or the virtual tokens.

    Which modules have tensors is given: PEFT drops those that its config does not target.
    """
    tensors = {name: value.float() for name, value in load(bare.weights).items()}
    if PROMPT in tensors:
        return tensors
    config: dict[str, Any] = json.loads(bare.config)
    known = LoraConfig.__dataclass_fields__
    settings = {key: value for key, value in config.items() if key in known}
    settings |= {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": None}
    settings |= {"exclude_modules": None, "init_lora_weights": True, "layers_pattern": None}
    with peft_warnings_ignored():
        model = LoraModel(_Paper(), {"default": LoraConfig(**settings)}, "default")
    renamed = {
        name.removeprefix(PREFIX).replace(".weight", ".default.weight"): value
        for name, value in tensors.items()
    }
    left = model.model.load_state_dict(renamed, strict=False)
    assert not left.unexpected_keys
    return {
        name: model.model.get_submodule(name).get_delta_weight("default").detach()  # type: ignore[operator]
        for name in (MODULE, DOWN)
    }
