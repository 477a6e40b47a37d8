"""Two processes that train together give what one gives that accumulates over their batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from polygraft.trainer.config import RunConfig
from polygraft.trainer.recipe import parse_recipe
from polygraft.trainer.run import train


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(
    tiny_base: Path, toy_file: Path, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "name": "toy",
        "base": {"path": str(tiny_base)},
        "data": {"train": str(toy_file), "split": {}, "rows": 64},
        "method": {"kind": "lora", "r": 4},
        "optim": {"epochs": 1, "batch": 8, "lr": 0.01},
        "eval": {"generate": {"rows": 4, "max_new_tokens": 4}},
        "runtime": {"account_memory": False},
        "output": str(tmp_path / "two"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    program = Path(sys.executable).with_name("polygraft")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*launcher, str(program), "train", str(path), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    (two,) = (tmp_path / "two").iterdir()  # one run, and nothing of the other process
    assert finished.stdout.count('"digest"') == 1

    optim = {**recipe["optim"], "accumulate": 2}
    config: RunConfig = parse_recipe({**recipe, "optim": optim, "output": str(tmp_path / "one")})
    one = train(config, score_test=False).directory
    wanted = load_file(one / "adapter" / "adapter_model.safetensors")
    found = load_file(two / "adapter" / "adapter_model.safetensors")
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-5), name
