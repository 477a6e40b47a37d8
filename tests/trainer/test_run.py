"""Whole runs on a tiny base: what is written, that it repeats, and that wreckage is not kept."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from polygraft.adapters.fingerprint import fingerprint_base
from polygraft.adapters.manifest import parse_manifest
from polygraft.trainer.config import RunConfig
from polygraft.trainer.data import read_examples, rows_sha256
from polygraft.trainer.errors import DataError, Interrupted, RecipeError, TrainingFailed
from polygraft.trainer.frozen_base import load_tokenizer
from polygraft.trainer.progress import Silent
from polygraft.trainer.recipe import load_resolved
from polygraft.trainer.run import RunResult, train
from polygraft.trainer.splits import split_by_group

MakeConfig = Callable[..., RunConfig]
METHODS = {
    "lora": {"kind": "lora", "r": 4, "rslora": True},
    "prompt": {"kind": "prompt", "virtual_tokens": 6, "init": "vocab"},
}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, toy_file: Path
) -> dict[str, RunResult]:
    """One finished run per method."""
    from polygraft.trainer.recipe import parse_recipe

    output = str(tmp_path_factory.mktemp("runs"))
    return {
        kind: train(
            parse_recipe(
                {
                    "name": kind,
                    "base": {"path": str(tiny_base)},
                    "data": {"train": str(toy_file), "split": {}, "template": "Say: {prompt}"},
                    "method": method,
                    "optim": {"epochs": 2, "lr": 0.02},
                    "eval": {"every": 0.5, "generate": {"rows": 4}},
                    "output": output,
                }
            )
        )
        for kind, method in METHODS.items()
    }


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_directory_is_complete_and_nothing_else_is_left(
    runs: dict[str, RunResult], kind: str
) -> None:
    directory = runs[kind].directory
    start = {"soft_prompt_start.safetensors"} if kind == "prompt" else set()
    assert {path.name for path in directory.iterdir()} == start | {
        "MODEL_CARD.md",
        "adapter",
        "config.resolved.yaml",
        "loss.png",
        "manifest.json",
        "metrics.jsonl",
        "parity.jsonl",
        "predictions.test.jsonl",
        "report.html",
        "report.json",
        "samples.jsonl",
        "scores.png",
    }
    assert {path.name for path in (directory / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "probes.safetensors",
    }
    assert not [path for path in directory.parent.iterdir() if path.name.startswith(".")]
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", METHODS)
def test_the_manifest_names_base_data_and_files_by_hash(
    runs: dict[str, RunResult], kind: str, tiny_base: Path, toy_file: Path
) -> None:
    directory = runs[kind].directory
    data = (directory / "manifest.json").read_bytes()
    manifest = parse_manifest(data)
    assert manifest.digest == runs[kind].digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    for record in manifest.files:
        content = (directory / "adapter" / record.name).read_bytes()
        assert (record.size, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    fingerprint = fingerprint_base(tiny_base, load_tokenizer(str(tiny_base)))
    assert manifest.base.weights_sha256 == fingerprint.weights_sha256
    assert manifest.base.config_sha256 == fingerprint.config_sha256
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.behaviour_sha256 == fingerprint.tokenizer_sha256
    rows = read_examples(toy_file, ["prompt"], "completion", None)
    split = runs[kind].config.data.split
    assert split is not None
    expected = split_by_group(rows, split)
    assert {r.split: r.sha256 for r in manifest.data} == expected.hashes()
    assert manifest.data[2].sha256 == rows_sha256(expected.test)
    assert manifest.prompt is not None
    assert manifest.prompt.variables == ("prompt",)
    assert str(tiny_base.parent) not in data.decode()
    scored = {(score.subject, score.metric) for score in manifest.scores}
    assert {("base", "rougeL"), ("adapter", "exact_match")} <= scored


@pytest.mark.parametrize("kind", METHODS)
@torch.no_grad()
def test_the_adapter_loads_with_plain_peft_and_answers_the_same(
    runs: dict[str, RunResult], kind: str, tiny_base: Path
) -> None:
    """Predictions written by the run equal greedy decoding of the reloaded adapter, row alone."""
    directory = runs[kind].directory
    config = json.loads((directory / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), directory / "adapter"
    )
    model.train(False)
    tokenizer = load_tokenizer(str(tiny_base))
    lines = (directory / "predictions.test.jsonl").read_text().splitlines()
    for line in lines[:6]:
        row = json.loads(line)
        ids = tokenizer.encode("Say: " + row["variables"]["prompt"])
        made: list[int] = []
        while len(made) < 8:
            made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                break
        assert row["adapter"].startswith(tokenizer.decode(made, skip_special_tokens=True))


def test_the_adapter_learns_and_its_test_score_is_of_its_predictions(
    runs: dict[str, RunResult],
) -> None:
    result = runs["lora"]
    base, adapter = result.subjects
    assert result.best.loss < 3.5  # 5.6 before
    lines = (result.directory / "predictions.test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for subject in (base, adapter):
        scores = [scorer.score(r["reference"], r[subject.name])["rougeL"].fmeasure for r in rows]
        assert subject.value("rougeL") == pytest.approx(100 * sum(scores) / len(scores))


def test_metrics_hold_every_step_and_every_validation(runs: dict[str, RunResult]) -> None:
    lines = (runs["lora"].directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [r["step"] for r in records if "loss" in r]
    checks = [r for r in records if "validation_loss" in r]
    assert steps == list(range(1, len(steps) + 1))
    assert checks[0]["step"] == 0
    assert checks[-1]["step"] == steps[-1]
    best = min(checks[1:], key=lambda r: (-r["value"], r["validation_loss"]))
    assert runs["lora"].best.step == best["step"]


@pytest.mark.parametrize("kind", METHODS)
def test_the_same_seed_gives_the_same_bytes(make_config: MakeConfig, kind: str) -> None:
    def run(seed: int) -> str:
        config = make_config(method=METHODS[kind], seed=seed)
        result = train(config, score_test=False)
        return hashlib.sha256(
            (result.directory / "adapter/adapter_model.safetensors").read_bytes()
        ).hexdigest()

    assert run(1) == run(1) != run(2)


def test_a_resolved_recipe_reproduces_the_adapter(make_config: MakeConfig) -> None:
    first = train(make_config(optim={"epochs": 1}), score_test=False)
    resolved = load_resolved(first.directory)
    assert resolved.optim.lr == 5e-3
    again = train(resolved, score_test=False)
    name = "adapter/adapter_model.safetensors"
    assert (first.directory / name).read_bytes() == (again.directory / name).read_bytes()


@pytest.mark.parametrize("rate", [1e6, 1e30])
@pytest.mark.parametrize("kind", METHODS)
def test_a_diverged_run_fails_and_leaves_nothing(
    make_config: MakeConfig, kind: str, rate: float
) -> None:
    config = make_config(method=METHODS[kind], optim={"epochs": 1, "lr": rate})
    with pytest.raises(TrainingFailed, match="nothing was saved") as caught:
        train(config)
    assert caught.value.exit_code == 4
    assert list(config.output.iterdir()) == []


def test_an_adapter_that_never_moved_is_not_kept(make_config: MakeConfig) -> None:
    config = make_config(optim={"epochs": 1, "lr": 1e-300})
    with pytest.raises(TrainingFailed):
        train(config)
    assert list(config.output.iterdir()) == []


def test_empty_completions_stop_the_run_before_it_starts(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}", "completion": ""}}\n' for i in range(50)))
    config = make_config(data={"train": str(path), "split": {}})
    with pytest.raises(DataError, match="empty completion") as caught:
        train(config)
    assert caught.value.exit_code == 3
    assert not config.output.exists()


class PressesCtrlC(Silent):
    """Sends SIGINT to this process at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, loss: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("kind", METHODS)
def test_an_interrupted_run_goes_on_to_the_same_adapter(make_config: MakeConfig, kind: str) -> None:
    config = make_config(method={**METHODS[kind], **({"dropout": 0.1} if kind == "lora" else {})})
    whole = train(config, score_test=False)
    with pytest.raises(Interrupted) as caught:
        train(config, PressesCtrlC(step=5), score_test=False)
    assert caught.value.exit_code == 130
    (kept,) = config.output.glob("*.interrupted")
    assert not (kept / "adapter").exists()
    resumed = train(load_resolved(kept), score_test=False, resume=kept)
    assert not kept.exists()
    name = "adapter/adapter_model.safetensors"
    assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_a_run_stopped_before_its_first_checkpoint_leaves_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polygraft.trainer.methods.attach", press)
    config = make_config()
    with pytest.raises(Interrupted, match="before there was anything to keep"):
        train(config)
    assert list(config.output.iterdir()) == []


def test_out_of_memory_says_what_to_lower(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("polygraft.trainer.methods.attach", exhaust)
    config = make_config()
    with pytest.raises(TrainingFailed, match=r"optim.batch: out of memory.*optim.accumulate"):
        train(config)
    assert list(config.output.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("polygraft.trainer.run_directory.RunDirectory.write_json", OSError(28, "No space left")),
        ("polygraft.trainer.best.save_file", SafetensorError("I/O error: No space left (28)")),
    ],
)
def test_a_full_disk_leaves_nothing_half_saved(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    config = make_config(optim={"epochs": 1, "batch": 64})
    with pytest.raises(TrainingFailed, match=r"could not be written: .*No space left") as caught:
        train(config)
    assert caught.value.exit_code == 4
    assert list(config.output.iterdir()) == []


def test_a_run_without_a_checkpoint_cannot_go_on(make_config: MakeConfig, tmp_path: Path) -> None:
    done = tmp_path / "toy.interrupted"
    done.mkdir()
    with pytest.raises(RecipeError, match="no checkpoint to go on from"):
        train(make_config(), resume=done)
    assert done.exists()


def test_bf16_arithmetic_trains_fp32_weights(make_config: MakeConfig) -> None:
    from safetensors.torch import load_file

    runtime = {"precision": "bf16", "account_memory": True}
    result = train(make_config(runtime=runtime, optim={"epochs": 1, "batch": 48}))
    assert result.config.runtime.precision == "bf16"
    tensors = load_file(result.directory / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    report = json.loads((result.directory / "report.json").read_text())
    assert abs(report["cost"]["memory"]["error_percent"]) < 15
    plain = train(make_config(optim={"epochs": 1, "batch": 48}), score_test=False)
    assert plain.config.runtime.precision == "fp32"
    other = load_file(plain.directory / "adapter" / "adapter_model.safetensors")
    assert not all(torch.equal(tensors[name], other[name]) for name in tensors)


def test_a_base_in_four_bits_is_refused(make_config: MakeConfig) -> None:
    config = make_config(method={"kind": "lora", "quantize": "nf4"})
    with pytest.raises(
        RecipeError, match=r"method\.quantize: a base in 4 bits \(nf4\) is not trained on yet"
    ):
        train(config)
    assert not config.output.exists()


def test_a_loss_that_is_nan_ends_the_run_with_nothing_saved(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from tiny_models import save_base, tiny_llama

    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    base = save_base(tmp_path / "broken", model)
    config = make_config(base={"path": str(base)})
    with pytest.raises(TrainingFailed, match=r"is nan.*nothing was saved") as caught:
        train(config)
    assert caught.value.exit_code == 4
    assert list(config.output.iterdir()) == []
