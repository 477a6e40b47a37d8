"""What of a run goes to a server: the two files of the adapter and its manifest."""

from __future__ import annotations

from pathlib import Path

from polygraft.trainer.errors import RecipeError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MANIFEST_FILE = "manifest.json"


def adapter_files(path: Path) -> dict[str, Path]:
    """File name to path, for a run directory, its `adapter/`, or any PEFT directory.

    A run directory always brings its manifest; a bare PEFT directory has none, and the server
    then checks it by shapes only. Raises RecipeError when there is no adapter.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    manifest = folder / MANIFEST_FILE
    if not manifest.exists() and folder.name == "adapter":
        manifest = folder.parent / MANIFEST_FILE
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"holds no adapter: {' and '.join(missing)} missing.",
            file=str(folder),
            hint="Give a run directory of `polygraft train`, or a directory that PEFT's "
            "save_pretrained wrote.",
        )
    files = {name: folder / name for name in ADAPTER_FILES}
    if manifest.is_file():
        files[MANIFEST_FILE] = manifest
    return files
