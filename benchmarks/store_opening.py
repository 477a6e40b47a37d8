#!/usr/bin/env python3
"""Measure how long a server takes to read its store when it starts.

.venv/bin/python benchmarks/store_opening.py --names 10000 --versions 1
.venv/bin/python benchmarks/store_opening.py --store s3://bucket/prefix   # empty; or: moto
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polygraft.adapters.manifest import (
    BaseRecord,
    FileRecord,
    FormatRecord,
    Manifest,
    canonical_json,
)
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.local import LocalStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.protocol import Store

ROUNDS = 5


def main() -> None:
    """Print a row of a table: seconds of the first opening, and the best of those after it."""
    parser = argparse.ArgumentParser(description="Measure opening a store that holds versions.")
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=1, help="of each name")
    parser.add_argument("--store", default="", help="URL, or moto; default: a new directory")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = stack.enter_context(moto()) if options.store == "moto" else options.store
        fill(open_store(place, folder / "filling"), options.names, options.versions)
        seconds, cpu_seconds = zip(
            *(measure(place, folder / "cache", options.names) for _ in range(ROUNDS)), strict=True
        )
    kind = options.store.partition(":")[0] or "directory"
    print("| store | names x versions | first, s | again, s | CPU, s |\n|---|---|---|---|---|")
    print(
        f"| {kind} | {options.names} x {options.versions} | {seconds[0]:.2f} "
        f"| {min(seconds[1:]):.2f} | {min(cpu_seconds[1:]):.2f} |"
    )


def open_store(place: str, folder: Path) -> Store:
    """The bucket with its copies in `folder`, or a directory beside it."""
    if place:
        return BucketStore(place, folder)
    return LocalStore(folder.parent / "store")


def fill(store: Store, num_names: int, num_versions: int) -> None:
    """Records as publishing writes them, without files and without waiting for the disk."""
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(lambda name: fill_name(store, f"name-{name}", num_versions), range(num_names))
        )


def fill_name(store: Store, name: str, num_versions: int) -> None:
    """One name with its versions and its alias `live`."""
    digest = ""
    for number in range(1, num_versions + 1):
        manifest = make_manifest(f"{name} {number}")
        digest = manifest.digest
        hexadecimal = digest.removeprefix("sha256:")
        put(store, f"manifests/sha256/{hexadecimal}.json", canonical_json(manifest))
        record = {"version": digest, "verified": False, "at": 0.0, "nonce": "n"}
        put(store, f"versions/_/{name}/{number:010d}.json", json.dumps(record).encode())
    target = {"version": digest, "number": num_versions, "weight": 10_000}
    move = {"targets": [target], "previous": 0, "reason": "first", "at": 0.0, "nonce": "n"}
    put(store, f"aliases/_/{name}/live/0000000001.json", json.dumps(move).encode())


def put(store: Store, key: str, data: bytes) -> None:
    """Creates one object."""
    store.create(key, data, durable=False)


def make_manifest(content: str) -> Manifest:
    """A manifest as a bare LoRA gets it."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    names = ("adapter_config.json", "adapter_model.safetensors")
    return Manifest(
        schema="polygraft.adapter/1",
        kind="lora",
        files=tuple(FileRecord(name=name, size=1000, sha256=digest) for name in names),
        format=FormatRecord(
            peft_type="LORA", max_rank=16, tensor_count=224, modules=("q_proj", "v_proj")
        ),
        base=BaseRecord(declared=False),
    )


def measure(place: str, cache: Path, num_names: int) -> tuple[float, float]:
    """Wall and CPU seconds from nothing to a registry that answers."""
    started, cpu_started = time.perf_counter(), time.process_time()
    store = open_store(place, cache)
    registry = Registry(store)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    assert len(registry.names()) == num_names
    assert registry.resolve("name-0").manifest.files
    if isinstance(store, BucketStore):
        store.close()
    return seconds, cpu_seconds


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """The URL of a bucket of a local S3 server, which shares this process's cores."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
    with urllib.request.urlopen(request):
        yield "s3://bucket/prefix"
    server.stop()


if __name__ == "__main__":
    main()
