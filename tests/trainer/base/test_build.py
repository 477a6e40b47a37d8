"""A base can be built, continued, verified; the shipped one is the one its card names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from polygraft.adapters.fingerprint import resolve_base
from polygraft.commands.base import app
from polygraft.commands.failure import CommandFailed
from polygraft.trainer.base import build as build_module
from polygraft.trainer.base.build import OrphanTokensError, build
from polygraft.trainer.base.files import BaseFilesError, digest, verify
from polygraft.trainer.base.preset import PRESETS, Preset
from polygraft.trainer.base.pretrain import rate_factor

TINY = replace(
    PRESETS["nano"], hidden=32, heads=2, layers=1, mlp=48, cycles=(20,), batch_tokens=1024, warmup=5
)


@pytest.fixture(autouse=True)
def _quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer documents for the tokenizer and no wait for the mix of an untrained model."""
    monkeypatch.setattr(build_module, "TOKENIZER_DOCUMENTS", 4000)
    monkeypatch.setattr(build_module, "orphan_ids", lambda *_: [])
    monkeypatch.setattr(build_module, "mix_rows", lambda: build_mix_rows(per_skill=1))


def build_mix_rows(per_skill: int):  # type: ignore[no-untyped-def]
    from polygraft.trainer.base.mix import mix_rows

    return mix_rows(per_skill=per_skill)[:4]


def _build(out: Path, preset: Preset = TINY, save_every: int = 0) -> list[float]:
    losses: list[float] = []
    build(
        out,
        "tiny",
        preset,
        seed=0,
        compiled=False,
        on_progress=lambda _, loss: losses.append(loss),
        save_every=save_every,
    )
    return losses


def test_twenty_steps_learn_something_and_write_a_loadable_model(tmp_path: Path) -> None:
    losses = _build(tmp_path)
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    verify(tmp_path)
    assert digest(tmp_path / "model.safetensors") in (tmp_path / "BASE_CARD.md").read_text()


def test_a_continued_run_equals_an_unbroken_one_even_with_other_steps(tmp_path: Path) -> None:
    _build(tmp_path / "unbroken")
    _build(tmp_path / "broken", replace(TINY, cycles=(10,), decay_share=0.1), save_every=6)
    (tmp_path / "continued").mkdir()
    (tmp_path / "broken" / "state.pt").rename(tmp_path / "continued" / "state.pt")
    losses = _build(tmp_path / "continued")
    assert len(losses) == 14
    assert digest(tmp_path / "continued" / "model.safetensors") == digest(
        tmp_path / "unbroken" / "model.safetensors"
    )


def test_a_build_with_orphan_tokens_fails_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "orphan_ids", lambda *_: [300])
    with pytest.raises(OrphanTokensError, match="1 printable ids are too rare"):
        _build(tmp_path)


def test_rates_warm_up_stay_flat_and_fall_to_zero() -> None:
    preset = replace(TINY, cycles=(100, 50), warmup=10, decay_share=0.4)
    assert rate_factor(0, preset) == pytest.approx(0.1)
    assert rate_factor(30, preset) == 1.0
    assert rate_factor(80, preset) == pytest.approx(0.5)
    assert rate_factor(99, preset) == pytest.approx(0.025)
    assert rate_factor(100, preset) == pytest.approx(0.1)
    assert rate_factor(140, preset) == pytest.approx(0.5)
    assert rate_factor(150, preset) == 0.0


def test_the_shipped_base_matches_its_hashes_and_its_card() -> None:
    folder = resolve_base("builtin:nano")
    hashes = verify(folder)
    card = (folder / "BASE_CARD.md").read_text()
    assert all(value in card for value in hashes.values())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000


def test_the_verify_command_passes_on_the_shipped_base() -> None:
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0, result.output
    assert "6 files match" in result.stdout


def test_verify_names_the_file_that_changed(tmp_path: Path) -> None:
    for path in resolve_base("builtin:nano").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseFilesError, match=r"config\.json has SHA-256"):
        verify(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BaseFilesError, match=r"config\.json is missing"):
        verify(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(BaseFilesError, match="has no SHA256SUMS"):
        verify(tmp_path)


def test_the_build_command_refuses_a_full_folder_and_an_unknown_preset(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["--out", str(tmp_path)], ["--out", "x", "--preset", "giant"]):
        result = CliRunner().invoke(app, ["build", *arguments])
        assert isinstance(result.exception, CommandFailed)
