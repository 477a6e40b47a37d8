"""Which files of a run go to a server."""

from pathlib import Path

import pytest

from polygraft.trainer.errors import RecipeError
from polygraft.trainer.push import adapter_files


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / "adapter" / name).touch()
    (tmp_path / "manifest.json").touch()
    return tmp_path


def test_a_run_brings_its_manifest(run: Path) -> None:
    expected = {
        "adapter_config.json": run / "adapter/adapter_config.json",
        "adapter_model.safetensors": run / "adapter/adapter_model.safetensors",
        "manifest.json": run / "manifest.json",
    }
    assert adapter_files(run) == expected
    assert adapter_files(run / "adapter") == expected


def test_a_bare_peft_directory_has_no_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()
    assert set(adapter_files(run / "adapter")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_directory_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter_config.json and adapter_model.safetensors"):
        adapter_files(tmp_path)
