"""The wheel and the sdist hold everything, are the same, and work outside the checkout."""

import hashlib
import site
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from house.checkout import PACKAGE_FOLDERS, copy_checkout, listed_files

BUNDLED_BASE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PROTO_ENDINGS = (".proto", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source")
    copy_checkout(path)
    return path


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, `via_sdist/*.whl` built from it, and `direct/*.whl`."""
    out = tmp_path_factory.mktemp("dist")
    build(source, "--sdist", out)
    (sdist,) = out.glob("*.tar.gz")
    subprocess.run(["tar", "--extract", "--file", str(sdist), "--directory", str(out)], check=True)
    unpacked = out / sdist.name.removesuffix(".tar.gz")
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                build, (unpacked, source), ("--wheel",) * 2, (out / "via_sdist", out / "direct")
            )
        )
    return out


def build(source: Path, kind: str, out: Path) -> None:
    """Run the PEP 517 front end with the setuptools that is installed (no download)."""
    command = [sys.executable, "-P", "-m", "build", kind, "--no-isolation", "--outdir", str(out)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("polygraft-*-py3-none-any.whl")
    return wheel


def wheel_contents(wheel: Path) -> dict[str, str]:
    """Name of each entry to the sha256 of its bytes."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; its dependencies are those installed here."""
    prefix = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(prefix / "bin" / "python")]
    wheel = wheel_in(built / "via_sdist")
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = prefix.glob("lib/python*/site-packages")
    # A .pth line adds the folder, but not that folder's own .pth files: the editable install of the
    # checkout stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return prefix


def run_installed(environment: Path, folder: Path, program: str, *arguments: str) -> str:
    command = [str(environment / "bin" / program), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_is_the_same_directly_and_through_the_sdist(built: Path) -> None:
    direct = wheel_contents(wheel_in(built / "direct"))
    assert wheel_contents(wheel_in(built / "via_sdist")) == direct


def test_the_wheel_holds_every_module_and_nothing_outside_the_package(built: Path) -> None:
    names = wheel_contents(wheel_in(built / "direct")).keys()
    outside = [name for name in names if not name.startswith(("polygraft/", "polygraft-"))]
    assert outside == []
    folders = [f"{folder}/" for folder in PACKAGE_FOLDERS]
    expected = [f"polygraft/{path}" for path in listed_files(*folders) if path.suffix == ".py"]
    expected += [str(path)[4:] for path in listed_files("src/polygraft/*.py")]
    assert [name for name in expected if name not in names] == []


def test_the_wheel_holds_the_sources_of_the_native_kernels(built: Path) -> None:
    names = wheel_contents(wheel_in(built / "direct")).keys()
    sources = [f"polygraft/{path}" for path in listed_files("kernels/native/source/")]
    assert len(sources) >= 5
    assert [name for name in sources if name not in names] == []


def test_the_wheel_holds_the_bundled_base_the_protos_their_stubs_and_the_licence(
    built: Path,
) -> None:
    names = wheel_contents(wheel_in(built / "direct")).keys()
    protos = [f"{name}{end}" for name in ("generation", "adapters") for end in PROTO_ENDINGS]
    expected = [
        "polygraft/py.typed",
        *(f"polygraft/protos/{name}" for name in protos),
        *(f"polygraft/assets/nano/{name}" for name in BUNDLED_BASE),
        "polygraft-0.1.0.dist-info/licenses/LICENSE",
    ]
    assert [name for name in expected if name not in names] == []


def test_the_installed_program_runs_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    version = run_installed(environment, tmp_path, "polygraft", "--version")
    assert version == "polygraft 0.1.0\n"
    assert "serve" in run_installed(environment, tmp_path, "polygraft", "--help")


def test_the_installed_package_is_imported_from_the_environment(
    environment: Path, tmp_path: Path
) -> None:
    code = "import polygraft; print(polygraft.__file__)"
    found = run_installed(environment, tmp_path, "python", "-c", code)
    assert found.startswith(str(environment))


def test_the_bundled_base_is_found_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    code = (
        "from polygraft.adapters.fingerprint import resolve_base;"
        "from transformers import AutoConfig, AutoTokenizer;"
        "path = resolve_base('builtin:nano'); print(path);"
        "AutoConfig.from_pretrained(path); AutoTokenizer.from_pretrained(path)"
    )
    found = run_installed(environment, tmp_path, "python", "-c", code)
    assert found.startswith(str(environment))


def test_an_import_of_the_bare_folder_names_does_not_find_ours(
    environment: Path, tmp_path: Path
) -> None:
    code = (
        "from importlib.util import find_spec;"
        f"print([name for name in {PACKAGE_FOLDERS} if find_spec(name)])"
    )
    assert run_installed(environment, tmp_path, "python", "-P", "-c", code) == "[]\n"
