"""Adapters that are wrong in one place: none is published that PEFT would read otherwise.

2,400 mutations by seeds, and crafted files. A refusal names the file, the place and the limit.
`POLYGRAFT_MUTANTS=8000` makes so many of each of the two kinds.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_support.directories import (
    HIDDEN,
    MODULE,
    PREFIX,
    header_of,
    lora_config,
    lora_tensors,
    push,
    small_geometry,
    write_adapter,
)
from adapter_support.mutations import (
    PROMPT,
    Bare,
    good_lora,
    good_prompt,
    join,
    mutate,
    peft_reading,
    split,
)
from peft import PromptTuningConfig
from torch import Tensor

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterNotFound,
    InvalidRequest,
    PolygraftError,
)
from polygraft.adapters.files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.manifest import canonical_json, minimal_manifest, record_files
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.uploads import Uploads
from polygraft.adapters.validation import validate_files
from polygraft.adapters.validation_process import ValidationProcess
from polygraft.adapters.weights import AdapterWeights, read_adapter

LIMITS = AdapterLimits(max_rank=64, max_virtual_tokens=16)
SEEDS = int(os.environ.get("POLYGRAFT_MUTANTS", "1200"))  # of each of the two kinds
GOOD: Mapping[str, Bare] = {"lora": good_lora(), "soft_prompt": good_prompt()}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: thousands of small files take their time on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


@pytest.fixture
def registry() -> Iterator[Registry]:
    store = MemoryStore()
    yield Registry(store)
    store.close()


@pytest.fixture
def uploads(registry: Registry, tmp_path: Path) -> Iterator[Uploads]:
    made = Uploads(tmp_path / "staging", registry, small_geometry(), LIMITS)
    yield made
    assert made.staging_files() == 0
    made.close()


def meaning(weights: AdapterWeights) -> dict[str, Tensor]:
    """What is added to the weight of each module, or the virtual tokens."""
    assert not weights.changes
    if weights.prompt_embeddings is not None:
        return {PROMPT: weights.prompt_embeddings}
    return {name: m.scaling * m.lora_b @ m.lora_a for name, m in weights.modules.items()}


def is_same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-30) for name in one
    )


def told(error: PolygraftError) -> str:
    """The refusal; it must name what is wrong where."""
    if isinstance(error, InvalidRequest):  # an empty file is refused at the header
        assert str(error.item).startswith("files["), error
    else:
        assert error.file in (CONFIG_FILE, WEIGHTS_FILE) or "problems" in error.metadata, error
    assert len(error.message) > 10
    named = (error.item, error.found, error.hint, error.allowed, error.metadata.get("problems"))
    assert any(value is not None for value in named), error
    return str(error)


@pytest.mark.parametrize("kind", list(GOOD))
def test_mutants_are_refused_or_mean_exactly_what_peft_reads(
    kind: str, uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    good, outcomes = GOOD[kind], Counter[str]()
    files = good.write(tmp_path / "good")
    original = meaning(read_adapter(files, small_geometry(), LIMITS, dtype=torch.float32))
    assert is_same(original, peft_reading(good))
    for seed in range(SEEDS):
        what, mutant = mutate(good, seed)
        mutant.write(tmp_path / "mutant")
        name = f"m{seed}"
        try:
            digest = push(uploads, tmp_path / "mutant", name).record.digest
        except (AdapterInvalid, AdapterIncompatible, InvalidRequest) as error:
            told(error)
            outcomes["refused"] += 1
            with pytest.raises(AdapterNotFound):
                registry.resolve(name)
            continue
        published = read_adapter(
            registry.files(digest), small_geometry(), LIMITS, dtype=torch.float32
        )
        if is_same(meaning(published), original):
            outcomes["published, as the original"] += 1
            continue
        # It says something else, as another adapter would: then exactly that.
        assert is_same(meaning(published), peft_reading(mutant)), (what, seed)
        outcomes["published, as another adapter"] += 1
    print(f"{kind}: {dict(outcomes)}")
    assert outcomes["refused"] > SEEDS // 2, outcomes
    assert outcomes.total() == SEEDS


@pytest.mark.parametrize("kind", list(GOOD))
def test_no_mutant_is_published_under_a_manifest(
    kind: str, uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    """What a trainer has signed by its manifest cannot be changed by anybody."""
    good = GOOD[kind]
    files = good.write(tmp_path / "good")
    weights = read_adapter(files, small_geometry(), LIMITS, dtype=torch.float32)
    manifest = canonical_json(minimal_manifest(files, weights, record_files(files)))
    (tmp_path / "good" / MANIFEST_FILE).write_bytes(manifest)
    push(uploads, tmp_path / "good", "good")
    mutant = tmp_path / "mutant"
    mutant.mkdir()
    (mutant / MANIFEST_FILE).write_bytes(manifest)
    for seed in range(0, SEEDS, 6):
        mutate(good, seed)[1].write(mutant)
        with pytest.raises(AdapterInvalid):
            push(uploads, mutant, "bad")
    assert registry.names() == ["good"]


def test_no_mutant_harms_the_process_that_reads_it(tmp_path: Path) -> None:
    lost: list[str] = []
    process = ValidationProcess(lost.append)
    differ = []
    for seed in range(200):
        _, mutant = mutate(GOOD["lora" if seed % 2 else "soft_prompt"], 10_000 + seed)
        files = mutant.write(tmp_path / "mutant")
        header = header_of(files, "sum", allow_unverified_base=True)
        answers = []
        for validate in (validate_files, process.validate):
            try:
                answers.append(validate(header, files, small_geometry(), LIMITS).manifest.digest)
            except PolygraftError as error:
                answers.append(str(error))
        if answers[0] != answers[1]:
            differ.append((seed, answers))
    process.close()
    assert (lost, differ) == ([], [])


def config_with(**changes: Any) -> Callable[[Path], object]:
    return lambda d: write_adapter(d, lora_config(**changes))


def raw_config(old: str, new: str) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        path = write_adapter(directory) / CONFIG_FILE
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return make


def tensors_with(**changes: Tensor | None) -> Callable[[Path], object]:
    """Changes of "a" and "b", None drops one; other names are added."""

    def make(directory: Path) -> None:
        tensors = lora_tensors()
        names = {"a": f"{PREFIX}{MODULE}.lora_A.weight", "b": f"{PREFIX}{MODULE}.lora_B.weight"}
        for name, value in changes.items():
            if value is None:
                del tensors[names[name]]
            else:
                tensors[names.get(name, name)] = value
        write_adapter(directory, None, tensors)

    return make


def in_module(module: str) -> Callable[[Path], object]:
    return lambda d: write_adapter(d, None, lora_tensors(module=module))


def of_rank(rank: int) -> Callable[[Path], object]:
    return tensors_with(a=torch.ones(rank, HIDDEN), b=torch.ones(4, rank))


def only_tensor(name: str) -> Callable[[Path], object]:
    return header_with(lambda header: {name: list(header.values())[-1]})


def trailing(directory: Path) -> None:
    path = write_adapter(directory) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes() + b"x")


def header_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        path = write_adapter(directory) / WEIGHTS_FILE
        header, payload = split(path.read_bytes())
        path.write_bytes(join(change(header) or header, payload))

    return make


def many(header: dict[str, Any]) -> bytes:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return ("{" + ",".join(f'"t{i}":{entry}' for i in range(100_000)) + "}").encode()


def doubled(header: dict[str, Any]) -> bytes:
    name, entry = next((n, e) for n, e in header.items() if n != "__metadata__")
    return (
        json.dumps(header)[:-1].encode() + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode()
    )


def file_of(name: str, data: bytes) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        (write_adapter(directory) / name).write_bytes(data)

    return make


def prompt_of(rows: int, width: int, declared: int | None = None) -> Callable[[Path], object]:
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=declared or max(rows, 1), token_dim=HIDDEN
    )
    return lambda d: write_adapter(d, config.to_dict(), {PROMPT: torch.ones(rows, width)})


HUGE = b"\xff" * 7 + b"\x7f" + b"{}"
PICKLE = b"\x80\x04\x95" + bytes(99)
TAR = bytes(257) + b"ustar\0" + bytes(300)
CRAFTED: list[tuple[str, Callable[[Path], object], str, str]] = [
    # what, how, the place that the refusal names, the limit or value that it names
    ("duplicate config key", raw_config('"r": 2', '"r": 2, "r": 2'), "r", "twice"),
    ("duplicate tensor", header_with(doubled), "lora_A", "twice"),
    ("rank 0", config_with(r=0), "r", "0"),
    ("rank -1", config_with(r=-1), "r", "-1"),
    ("rank 10^6", config_with(r=10**6), "rank|r", "1000000"),
    ("rank of A and B differ", tensors_with(a=torch.ones(3, HIDDEN)), "lora_A", "one rank"),
    ("rank over the limit", of_rank(65), MODULE, "64"),
    ("NaN", tensors_with(a=torch.full((2, HIDDEN), float("nan"))), "lora_A", "NaN"),
    ("Inf", tensors_with(b=torch.full((4, 2), float("inf"))), "lora_B", "infinite"),
    ("float64", tensors_with(a=torch.ones(2, HIDDEN).double()), "lora_A", "F32"),
    ("int8", tensors_with(a=torch.ones(2, HIDDEN).char()), "lora_A", "F32"),
    ("bool", tensors_with(a=torch.ones(2, HIDDEN).bool()), "lora_A", "F32"),
    ("wrong module", in_module("model.layers.9.q_proj"), "layers.9", "no linear module"),
    ("missing pair", tensors_with(b=None), "lora_A", "lora_B|pair|half"),
    ("alpha NaN", raw_config('"lora_alpha": 4', '"lora_alpha": NaN'), "NaN", "finite"),
    ("alpha 1e999", raw_config('"lora_alpha": 4', '"lora_alpha": 1e999'), "1e999", "finite"),
    ("alpha text", config_with(lora_alpha="4"), "lora_alpha", "number|int|float"),
    ("scale overflow", tensors_with(a=torch.full((2, HIDDEN), 3e38)), MODULE, "3.4"),
    ("100,000 tensors", header_with(many), WEIGHTS_FILE, "20000"),
    ("name with ../", only_tensor("../x"), "../x", "letters"),
    ("name with NUL", only_tensor("a\0b"), "x00", "letters"),
    ("name right to left", only_tensor("\u202eab"), "u202e", "letters"),
    ("name of 4 KiB", only_tensor("a" * 4096), "aaaa", "256"),
    ("zero dimension", of_rank(0), "lora_", "at least 1"),
    ("empty header", file_of(WEIGHTS_FILE, join({}, b"")), WEIGHTS_FILE, "no LoRA tensors"),
    ("empty weights", file_of(WEIGHTS_FILE, b"\0"), WEIGHTS_FILE, "2.."),
    ("header of 2^63 bytes", file_of(WEIGHTS_FILE, HUGE), WEIGHTS_FILE, "2.."),
    ("trailing bytes", trailing, WEIGHTS_FILE, "trailing bytes"),
    ("pickle as weights", file_of(WEIGHTS_FILE, PICKLE), WEIGHTS_FILE, "pickle"),
    ("zip as weights", file_of(WEIGHTS_FILE, b"PK\x03\x04" + bytes(99)), WEIGHTS_FILE, "zip"),
    ("gzip as config", file_of(CONFIG_FILE, b"\x1f\x8b\x08" + bytes(99)), CONFIG_FILE, "gzip"),
    ("tar as config", file_of(CONFIG_FILE, TAR), CONFIG_FILE, "tar"),
    ("pickle as a card", file_of("README.md", b"\x80\x05" + bytes(9)), "README.md", "pickle"),
    ("zip as a report", file_of("report.json", b"PK\x03\x04"), "report.json", "zip"),
    ("soft prompt of no tokens", prompt_of(0, HIDDEN), PROMPT, "at least 1"),
    ("soft prompt too long", prompt_of(17, HIDDEN), PROMPT, "16"),
    ("soft prompt too wide", prompt_of(4, HIDDEN + 1), PROMPT, str(HIDDEN)),
    ("soft prompt of other length", prompt_of(4, HIDDEN, 5), PROMPT, "5"),
    ("config nested", file_of(CONFIG_FILE, b"[" * 100_000), CONFIG_FILE, "deep"),
    ("config of one number", file_of(CONFIG_FILE, b"1"), CONFIG_FILE, "object"),
    ("config not UTF-8", file_of(CONFIG_FILE, b'{"r": "\xff"}'), CONFIG_FILE, "JSON"),
    ("unknown key", config_with(turbo=True), "turbo", "true|True"),
    ("other method", config_with(peft_type="IA3"), "peft_type", "LORA"),
    ("other task", config_with(task_type="SEQ_CLS"), "task_type", "CAUSAL_LM"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "make", "place", "limit"), CRAFTED, ids=[r[0] for r in CRAFTED])
def test_crafted_files_are_refused_by_name(
    what: str,
    make: Callable[[Path], object],
    place: str,
    limit: str,
    uploads: Uploads,
    registry: Registry,
    tmp_path: Path,
) -> None:
    make(tmp_path / "bad")
    with pytest.raises((AdapterInvalid, AdapterIncompatible)) as caught:
        push(uploads, tmp_path / "bad", "bad")
    text = str(caught.value)
    assert any(part in text for part in place.split("|")), text
    assert any(part in text for part in limit.split("|")), text
    assert registry.names() == []


def test_links_are_followed_by_the_client_only_and_arrive_as_files(
    uploads: Uploads, registry: Registry, tmp_path: Path
) -> None:
    """A link cannot be declared; what an uploader's own directory links to is the uploader's."""
    real = write_adapter(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    digest = push(uploads, linked, "sum").record.digest
    assert push(uploads, real, "sum").record.digest == digest
    assert not any(path.is_symlink() for path in registry.files(digest).values())
    shutil.rmtree(real)
    assert registry.files(digest)
