"""What only a store behind a network can do: lose replies, be out of reach, refuse, be unsafe."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_support.press import Press
from adapter_support.proxy import Proxy, proxy_to
from adapter_support.s3_server import SECRET, S3Server, s3_server

from polygraft.adapters.errors import InvalidRequest, Unavailable
from polygraft.adapters.log import Log
from polygraft.adapters.registry import Registry
from polygraft.adapters.stores.memory import MemoryStore
from polygraft.adapters.stores.object import BucketStore
from polygraft.adapters.stores.self_test import check_create_once


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy_to(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(s3: S3Server, proxy: Proxy, tmp_path: Path) -> Iterator[BucketStore]:
    store = BucketStore(s3.bucket(), tmp_path / "cache", timeout=5.0)
    yield store
    store.close()


def test_an_append_whose_reply_was_dropped_is_recognised_as_ours(
    store: BucketStore, proxy: Proxy
) -> None:
    log = Log(store, "log/x/")
    assert log.append(1, {"value": 0}) is not None
    for number in (2, 3, 4):
        proxy.replies_to_drop = 1
        written = log.append(number, {"value": number})
        assert written is not None, number
        assert dict(log.entries())[number] == written
    assert proxy.dropped == 3
    assert log.append(2, {"value": "late"}) is None


def test_a_store_out_of_reach_is_unavailable_and_comes_back(
    store: BucketStore, proxy: Proxy
) -> None:
    store.create("a/b", b"x")
    proxy.go_down()
    for call in (
        lambda: store.create("a/c", b"y"),
        lambda: store.get("a/b"),
        lambda: store.get_path("a/b"),
        lambda: store.list("a/"),
        lambda: store.delete("a/b"),
    ):
        with pytest.raises(Unavailable, match=f"{store.url} failed") as caught:
            call()
        assert caught.value.code == "STORE_UNAVAILABLE"
    proxy.is_down = False
    assert store.create("a/c", b"y")
    assert store.get("a/b") == b"x"


def test_a_registry_serves_what_it_has_read_while_the_store_is_away(
    store: BucketStore, proxy: Proxy, press: Press
) -> None:
    registry = Registry(store)
    first, second = press.publish(registry, "sum", 1), press.publish(registry, "sum", 2)
    registry.files(first.digest)
    proxy.go_down()
    assert registry.resolve("sum").manifest == first.manifest
    assert registry.files(first.digest)["adapter_config.json"].is_file()
    with pytest.raises(Unavailable):
        registry.files(second.digest)
    with pytest.raises(Unavailable):
        registry.move_alias("sum", "live", 2)
    assert registry.resolve("sum") == first
    proxy.is_down = False
    assert registry.move_alias("sum", "live", 2).generation == 2
    assert registry.files(second.digest)


def test_the_next_server_on_this_machine_reads_records_from_its_disk(
    store: BucketStore, s3: S3Server, proxy: Proxy, press: Press, tmp_path: Path
) -> None:
    registry = Registry(store)
    for content in (1, 2, 3):
        press.publish(registry, "sum", content)
    again = Registry(store)
    asked: list[str] = []
    download = store._download

    def counted(key: str) -> bytes:
        asked.append(key)
        return download(key)

    store._download = counted  # type: ignore[method-assign]
    third = Registry(store)
    assert third.versions("sum") == again.versions("sum") == registry.versions("sum")
    assert third.resolve("sum").manifest.files
    assert asked == []


def test_a_copy_that_rotted_on_this_disk_is_fetched_again(store: BucketStore, press: Press) -> None:
    registry = Registry(store)
    record = press.publish(registry, "sum", 1)
    path = registry.files(record.digest)["adapter_model.safetensors"]
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert registry.files(record.digest)["adapter_model.safetensors"].read_bytes() == intact


def test_a_bucket_that_is_not_there_says_so(s3: S3Server, proxy: Proxy, tmp_path: Path) -> None:
    store = BucketStore("s3://no-such-bucket/x", tmp_path)
    with pytest.raises(Unavailable, match="there is no s3://no-such-bucket/x"):
        check_create_once(store)
    store.close()


def test_the_self_test_accepts_a_store_that_creates_once(store: BucketStore) -> None:
    check_create_once(store)
    assert list(store.list("probe/")) == []


def test_the_self_test_refuses_a_store_that_overwrites() -> None:
    class Overwriting(MemoryStore):
        """As MinIO was before it knew If-None-Match."""

        def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
            self.delete(key)
            return super().create(key, data, durable=durable)

    store = Overwriting()
    with pytest.raises(InvalidRequest, match="overwrites objects instead of refusing") as caught:
        check_create_once(store)
    assert caught.value.code == "UNSAFE_STORE"
    assert list(store.list("")) == []
    store.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/x", "names none of s3://, gs:// and az://"),
        ("s3://key:secret-7@bucket/x", "credentials belong into the environment"),
        ("s3://bucket/x?token=secret-7", "credentials belong into the environment"),
        ("s3://bucket/../x", "bucket and prefix are letters"),
        ("s3://bucket/" + "x" * 128, "128 characters at most"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a store") as caught:
        BucketStore(url, tmp_path)
    assert why in str(caught.value)
    assert "secret-7" not in f"{caught.value}{caught.value.found}"


def test_credentials_are_in_no_error_and_no_log(
    store: BucketStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy.go_down()
    with pytest.raises(Unavailable) as caught:
        store.get("a/b")
    told = "".join(traceback.format_exception(caught.value)) + repr(store) + caplog.text
    assert SECRET not in told
    assert "testing" not in told


def test_files_used_longest_ago_make_room(s3: S3Server, tmp_path: Path) -> None:
    store = BucketStore(s3.bucket(), tmp_path, cache_bytes=2500)
    keys = []
    for number in range(4):
        data = bytes([number]) * 1000
        keys.append(f"blobs/sha256/{hashlib.sha256(data).hexdigest()}")
        store.create(keys[-1], data)
        store.get_path(keys[-1])
    cache = store._files
    assert cache.num_bytes() == 4000  # all used in the last minute: none is taken from a reader
    cache._used_at = dict.fromkeys(cache._used_at, float("-inf"))
    store.get_path(keys[0])
    assert store.drop_copy(keys[3])
    store.get_path(keys[3])
    assert cache.num_bytes() == 2000
    assert cache.get(keys[0]) is not None
    assert cache.get(keys[1]) is None
    store.close()
    again = BucketStore(s3.bucket(), tmp_path, cache_bytes=1500)  # the next server
    assert again._files.num_bytes() == 1000
    again.close()
