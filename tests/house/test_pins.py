"""Dependencies: all pinned, nothing else pinned, installed as pinned, and declared where used."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from house.checkout import PACKAGE_FOLDERS, ROOT, python_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
DIRECT = [
    *BASE,
    *(Requirement(line) for lines in EXTRAS.values() for line in lines),
]
BUILD = [Requirement("setuptools>=77")]  # what pyproject's [build-system] asks for


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def requirements_of(parent: Requirement) -> Iterator[Requirement]:
    """What the installed distribution of `parent` requires here, with its extras."""
    for line in importlib.metadata.requires(parent.name) or []:
        requirement = Requirement(line)
        # Why: torch's CUDA builds pin their own nvidia-* and triton packages exactly.
        pinned_by_torch = parent.name == "torch" and "==" in str(requirement.specifier)
        if applies(requirement, frozenset(parent.extras)) and not pinned_by_torch:
            yield requirement


def closure(roots: list[Requirement]) -> set[str]:
    """Names of all direct and indirect dependencies of `roots`, as installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [requirement for requirement in roots if applies(requirement, frozenset())]
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            todo.extend(requirements_of(requirement))
    return {name for name, _ in seen}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_inside_its_range(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    assert requirement.specifier.contains(specifier.version)


def test_the_pins_are_exactly_all_direct_and_indirect_dependencies() -> None:
    needed = closure([*DIRECT, *BUILD])
    assert sorted(needed - pins().keys()) == [], "not pinned"
    assert sorted(pins().keys() - needed) == [], "pinned, but nothing needs it"


def test_installed_versions_are_the_pinned_ones() -> None:
    differing = [
        f"{pin} but {importlib.metadata.version(name)} is installed"
        for name, pin in pins().items()
        if not pin.specifier.contains(importlib.metadata.version(name), prereleases=True)
    ]
    assert differing == []


def imported_modules(path: Path) -> Iterator[str]:
    """Top-level names of all imports of a file, also of those inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_the_product_imports_only_what_it_requires_itself() -> None:
    """Nothing works by luck: not through a development tool, nor through another's dependency."""
    extras = ("gpu", "parquet", "bench")
    optional = [Requirement(line) for extra in extras for line in EXTRAS[extra]]
    direct = {canonicalize_name(requirement.name) for requirement in (*BASE, *optional)}
    owners = importlib.metadata.packages_distributions()
    product = [path for path in python_files() if path.parts[0] in (*PACKAGE_FOLDERS, "src")]
    found = {
        f"{path}: {module}"
        for path in product
        for module in imported_modules(path)
        if module not in sys.stdlib_module_names and module != "polygraft"
        if not {canonicalize_name(owner) for owner in owners.get(module, [])} & direct
    }
    assert found == set()
