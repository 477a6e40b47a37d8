"""Before a version is published the server computes it: PEFT's own numbers, or a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import SERVED, VOCAB
from engine_support.harness import random_prompts
from engine_support.peft_adapters import generate_alone, save_adapters, save_virtual_adapters
from engine_support.versions import Trained, copy_with_probes, probes_of
from server_support.service import in_thread
from tiny_models import byte_tokenizer, save_base
from torch import Tensor

from polygraft.adapters.probes import Probes
from polygraft.adapters.residency import Tier
from polygraft.client import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterNotFound,
    AsyncClient,
    Client,
    Overloaded,
)
from polygraft.client.retry import NO_RETRY
from polygraft.kernels.rank_pool import SitePool
from polygraft.server.config import ServerConfig
from polygraft.server.engine.batch import ForwardBatch, SampleRows
from polygraft.server.self_test import CHUNK, SelfTest
from polygraft.server.serve import RunningServer, run_server

if TYPE_CHECKING:
    from conftest import Served

KINDS = ("lora4", "rslora8", "patterns16", "soft", "p_tuning", "prefix")
PROMPTS = random_prompts(12, vocab=VOCAB, seed=5, longest=40)


@dataclass(frozen=True)
class Bench:
    """Adapters of a base with what PEFT computes for each, in float32."""

    base: Path
    adapters: dict[str, Path]
    probes: dict[str, Probes]


@dataclass(frozen=True)
class Node:
    """A running server and a client of it."""

    server: RunningServer
    client: Client
    bench: Bench

    def version(self, kind: str, directory: Path, *, probes: str | None = None) -> Trained:
        """Files of a kind with its own probes, or with those of another one; not signed."""
        wanted = self.bench.probes[probes or kind]
        return copy_with_probes(self.bench.adapters[kind], wanted, directory)

    def sign(self, trained: Trained) -> Path:
        return trained.sign(self.server.engine.geometry).directory


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    directory = tmp_path_factory.mktemp("bench")
    case = SERVED["llama"]
    base = save_base(directory / "base", case.build(), byte_tokenizer())
    adapters = save_adapters(base, directory, case.names) | save_virtual_adapters(base, directory)
    return Bench(base, adapters, {k: probes_of(base, adapters[k], PROMPTS) for k in KINDS})


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def node(
    request: pytest.FixtureRequest, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    config = ServerConfig.model_validate(
        {
            "model": str(bench.base),
            "port": 0,
            "metrics_port": 0,
            "store": tmp_path_factory.mktemp("node") / "store",
            "engine": {
                "dtype": request.param,
                "threads": 1,
                "kv_bytes": 1 << 24,
                "pool_rows": 128,
            },
        }
    )
    with in_thread(lambda: run_server(config)) as server:
        with Client(f"127.0.0.1:{server.port}", timeout=60) as client:
            yield Node(server, client, bench)
        server.check_integrity()


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_one_is_proven(node: Node, kind: str, tmp_path: Path) -> None:
    upload = node.client.upload_adapter(node.sign(node.version(kind, tmp_path / kind)), kind)
    assert upload.version.proven
    assert upload.version.verified
    assert upload.warnings == ()
    shown = node.client.get_adapter(kind).version
    assert shown is not None
    assert shown.proven
    assert shown.references == 0


def negated(name: str, tensor: Tensor) -> Tensor:
    return -tensor if "lora_B" in name else tensor


def reversed_rows(name: str, tensor: Tensor) -> Tensor:
    return tensor.flip(0)


def rolled_columns(name: str, tensor: Tensor) -> Tensor:
    return tensor.roll(1, dims=1)


SPOILED: dict[str, tuple[str, Callable[[Trained], Trained]]] = {
    "a missing rsLoRA factor": ("rslora8", lambda t: t.edit_config(use_rslora=False)),
    "a wrong scale": ("lora4", lambda t: t.edit_config(lora_alpha=10)),
    "a lost alpha pattern": ("patterns16", lambda t: t.edit_config(alpha_pattern={})),
    "other weights": ("lora4", lambda t: t.edit_tensors(negated)),
    "a soft prompt in another order": ("soft", lambda t: t.edit_tensors(reversed_rows)),
    "a prefix with other keys": ("prefix", lambda t: t.edit_tensors(rolled_columns)),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_wrong_one_is_refused_with_the_numbers(node: Node, how: str, tmp_path: Path) -> None:
    kind, spoil = SPOILED[how]
    directory = node.sign(spoil(node.version(kind, tmp_path / kind)))
    with pytest.raises(AdapterInvalid) as caught:
        node.client.upload_adapter(directory, "wrong")
    assert caught.value.code == "SELF_TEST_FAILED"
    for number in ("error of the base", "effect", "error of the adapter", "greedy tokens equal"):
        assert number in str(caught.value)
    assert_nothing_is_left(node, "wrong", directory)


def test_probes_of_another_adapter_are_refused(node: Node, tmp_path: Path) -> None:
    directory = node.sign(node.version("lora4", tmp_path / "a", probes="patterns16"))
    with pytest.raises(AdapterInvalid) as caught:
        node.client.upload_adapter(directory, "wrong")
    assert caught.value.code == "SELF_TEST_FAILED"
    assert_nothing_is_left(node, "wrong", directory)


def test_another_base_is_told_from_a_wrong_adapter(node: Node, tmp_path: Path) -> None:
    model = SERVED["llama"].build()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-1)
    other = save_base(tmp_path / "base", model, byte_tokenizer())
    adapter = node.bench.adapters["lora4"]
    probes = probes_of(other, adapter, PROMPTS)
    directory = node.sign(copy_with_probes(adapter, probes, tmp_path / "a"))
    with pytest.raises(AdapterIncompatible, match="the base alone") as caught:
        node.client.upload_adapter(directory, "wrong")
    assert caught.value.code == "SELF_TEST_FAILED"
    assert_nothing_is_left(node, "wrong", directory)


def test_one_whose_effect_is_nothing_is_refused_unless_that_is_wanted(
    node: Node, tmp_path: Path
) -> None:
    faint = copy_with_probes(
        node.bench.adapters["lora4"], node.bench.probes["lora4"], tmp_path / "faint"
    ).edit_tensors(lambda name, tensor: tensor * 1e-6)
    adapter = faint.directory
    trained = copy_with_probes(
        adapter, probes_of(node.bench.base, adapter, PROMPTS), tmp_path / "a"
    )
    directory = node.sign(trained)
    with pytest.raises(AdapterInvalid) as caught:
        node.client.upload_adapter(directory, "faint")
    assert caught.value.code == "NO_EFFECT"
    assert_nothing_is_left(node, "faint", directory)
    assert node.client.upload_adapter(directory, "faint", allow_no_effect=True).version.proven


@pytest.mark.parametrize("kind", KINDS)
def test_one_without_probes_is_published_as_unproven(node: Node, kind: str) -> None:
    upload = node.client.upload_adapter(
        node.bench.adapters[kind], f"bare-{kind}", allow_unverified_base=True
    )
    assert not upload.version.proven
    assert any("UNPROVEN" in warning for warning in upload.warnings)
    [listed] = [a for a in node.client.list_adapters() if a.name == f"bare-{kind}"]
    assert listed.version is not None
    assert not listed.version.proven


def test_the_formula_finds_a_kernel_that_scales_wrongly(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SitePool.write

    def wrong(
        self: SitePool, row0: int, z: int, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> None:
        write(self, row0, z, lora_a, lora_b, 1.1 * scaling)

    monkeypatch.setattr(SitePool, "write", wrong)
    trained = node.version("rslora8", tmp_path / "a").edit_config(lora_alpha=7)
    (trained.directory / "probes.safetensors").unlink()
    with pytest.raises(AdapterInvalid, match="PEFT's formula") as caught:
        node.client.upload_adapter(trained.directory, "wrong", allow_unverified_base=True)
    assert caught.value.code == "SELF_TEST_FAILED"


def test_nobody_else_can_use_it_while_it_is_tested(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = node.sign(node.version("lora4", tmp_path / "a").edit_config(revision="x"))
    refused = []
    by_probes = SelfTest._by_probes

    def looking(self: SelfTest, manifest, *arguments, **options):  # type: ignore[no-untyped-def]
        with pytest.raises(AdapterNotFound) as caught:
            node.client.generate("hi", adapter=manifest.digest)
        refused.append(caught.value)
        return by_probes(self, manifest, *arguments, **options)

    monkeypatch.setattr(SelfTest, "_by_probes", looking)
    assert node.client.upload_adapter(directory, "looked-at").version.proven
    assert len(refused) == 1


async def test_running_requests_give_the_same_tokens_and_no_step_is_large(
    served: Served, bench: Bench, tmp_path: Path
) -> None:
    num_tokens = 120
    await served.push("task", bench.adapters["lora4"])
    engine = served.server.engine
    run = engine._runner.run
    extra: list[int] = []  # rows of probes in steps with other requests

    def measured(batch: ForwardBatch) -> Tensor:
        own = [sample.chunk.num_tokens for sample in batch.samples if not is_probe(sample)]
        if len(own) == num_streams:
            extra.append(len(batch.token_ids) - sum(own))
        return run(batch)

    async def ask(prompt: list[int]) -> list[int]:
        answer = await served.client.generate(
            token_ids=prompt,
            adapter="task",
            max_output_tokens=num_tokens,
            ignore_eos=True,
            return_token_ids=True,
        )
        return list(answer.token_ids)

    prompts = [prompt[:10] for prompt in PROMPTS[:6]]
    num_streams = len(prompts)
    engine._runner.run = measured  # type: ignore[method-assign]
    *answers, _ = await asyncio.gather(
        *map(ask, prompts), push_proven(served, bench, tmp_path, "rslora8", "soft", "prefix")
    )
    expected = generate_alone(bench.base, bench.adapters["lora4"], prompts, num_tokens)
    assert answers == [tokens for tokens, _ in expected]
    assert max(extra) == CHUNK


async def test_one_that_has_no_room_beside_pins_is_told_so_and_can_be_gone_on_with(
    served: Served, bench: Bench, tmp_path: Path
) -> None:
    """Of 128 rows 16 are pinned; a LoRA of rank 128 needs all of them."""
    client = served.client
    large = grown(bench.adapters["lora4"], tmp_path / "large", 128)
    await served.push("small", bench.adapters["lora4"])
    await client.load_adapter("small", pin=True)
    async with AsyncClient(f"127.0.0.1:{served.server.port}", retry=NO_RETRY) as once:
        with pytest.raises(Overloaded, match="cannot be tested now") as caught:
            await once.upload_adapter(large.directory, "large", allow_unverified_base=True)
    assert caught.value.code == "NO_ADAPTER_ROWS"
    await client.unload_adapter("small")
    await served.push("large", large.directory)


def grown(adapter: Path, directory: Path, rank: int) -> Trained:
    """A LoRA of a larger rank, by saying its rows again."""
    directory.mkdir()
    for path in adapter.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())

    def repeat(name: str, tensor: Tensor) -> Tensor:
        times = (rank // 4, 1) if "lora_A" in name else (1, rank // 4)
        return tensor.repeat(*times)

    return Trained(directory).edit_tensors(repeat).edit_config(r=rank, lora_alpha=8)


async def test_the_prefix_cache_is_not_written(
    served: Served, bench: Bench, tmp_path: Path
) -> None:
    await push_proven(served, bench, tmp_path, "lora4", "soft", "prefix")
    assert served.server.engine._blocks._key_of == {}


async def push_proven(served: Served, bench: Bench, directory: Path, *kinds: str) -> None:
    for kind in kinds:
        trained = copy_with_probes(bench.adapters[kind], bench.probes[kind], directory / kind)
        trained.sign(served.server.engine.geometry)
        assert (await served.client.upload_adapter(trained.directory, kind)).version.proven


def is_probe(sample: SampleRows) -> bool:
    return sample.chunk.sequence.id.startswith("self-test")


def assert_nothing_is_left(node: Node, name: str, directory: Path) -> None:
    with pytest.raises(AdapterNotFound):
        node.client.get_adapter(name)
    server = node.server
    tested = [row.digest for row in server.residency.snapshot()]
    published = {
        version.digest
        for adapter in node.client.list_adapters()
        for version in node.client.list_versions(adapter.name)
    }
    assert set(tested) <= published
    assert server.residency.total_references() == 0
    assert server.uploads.staging_files() == 0
    assert all(row.tier in (Tier.HOST, Tier.DEVICE) for row in server.residency.snapshot())
