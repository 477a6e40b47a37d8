"""A store in a bucket: S3, Google Cloud Storage or Azure, through obstore.

Credentials come from the environment, as each cloud's own tools take them (AWS_ACCESS_KEY_ID,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ...), and are never shown: an error of
the client is told by its kind and the cloud's code, because its text may hold parts of a request.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from polygraft.adapters.errors import InvalidRequest, Unavailable
from polygraft.adapters.failpoints import failpoint
from polygraft.adapters.limits import GIB, MIB
from polygraft.adapters.stores.file_cache import FileCache
from polygraft.adapters.stores.local import disk_errors
from polygraft.adapters.stores.protocol import KEY, check_key
from polygraft.adapters.stores.record_cache import RecordCache

# What says that a cloud's protocol is spoken elsewhere: the first variable that is set.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
SCHEMES = tuple(_ENDPOINTS)
# Never changed once they are written, so a copy on this machine never becomes stale.
_CACHED_RECORDS = ("versions/", "aliases/", "manifests/", "scores/")
_CACHED_FILES = "blobs/"
MAX_PLACE_LENGTH = 128
_MULTIPART_BYTES = 16 * MIB
_PART_BYTES = 8 * MIB
_FETCHING_THREADS = 32
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<place>.+)")


class BucketStore:
    """Objects under a URL such as `s3://bucket/prefix`, with a cache on this machine's disk.

    `timeout`: seconds for one request. Two creators of one file over 16 MiB under `blobs/` may
    both be told that they won: such a file is sent in parts, which no cloud makes conditional,
    and has the same content whoever sends it.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None = None,
        *,
        cache_bytes: int = 10 * GIB,
        timeout: float = 30.0,
    ) -> None:
        self.url = _check_url(url)
        self._client = _client(url, timeout)
        self._own = tempfile.TemporaryDirectory(prefix="polygraft-") if cache is None else None
        directory = cache or Path(self._own.name)  # type: ignore[union-attr]
        self._files = FileCache(directory / "files", cache_bytes)
        self._records = RecordCache(directory / "records.sqlite3")

    def create(self, key: str, data: bytes | Path, *, durable: bool = True) -> bool:
        """See Store. A reply that is lost is looked for, so True and False are always right."""
        check_key(key)
        failpoint("store.open")
        if isinstance(data, Path):
            if key.startswith(_CACHED_FILES) and data.stat().st_size > _MULTIPART_BYTES:
                return self._create_in_parts(key, data)
            data = data.read_bytes()
        failpoint("store.write")
        try:
            with _client_errors(self.url, key):
                obstore.put(self._client, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except FileNotFoundError:
            raise Unavailable(
                f"there is no {self.url}.", reason="STORE_UNAVAILABLE", hint="Create the bucket."
            ) from None
        except Unavailable:
            return self._find_lost_reply(key, data)
        return True

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        is_cached = check_key(key).startswith(_CACHED_RECORDS)
        data = self._records.get(key) if is_cached else None
        if data is None:
            data = self._download(key)
            if is_cached:
                self._records.put({key: data})
        return data[offset : None if length is None else offset + length]

    def get_path(self, key: str) -> Path:
        """See Store: a file in the cache."""
        path = self._files.get(key) if check_key(key).startswith(_CACHED_FILES) else None
        if path is not None:
            return path
        size = self.size(key)
        try:
            with disk_errors(key), _client_errors(self.url, key):
                return self._files.put(key, self._parts(key, size))
        except FileNotFoundError:
            raise KeyError(key) from None

    def size(self, key: str) -> int:
        """See Store."""
        try:
            with _client_errors(self.url, key):
                return obstore.head(self._client, check_key(key))["size"]
        except FileNotFoundError:
            raise KeyError(key) from None

    def list(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """See Store."""
        folder = prefix.rpartition("/")[0]
        keys = []
        with _client_errors(self.url, prefix):
            pages = obstore.list(self._client, folder or None, offset=after, chunk_size=1000)
            for page in pages:
                keys += [meta["path"] for meta in page]
        # Why sorted and filtered again: the order is not promised, and a bucket may hold others'.
        fitting = (key for key in keys if key.startswith(prefix) and KEY.fullmatch(key))
        return iter(sorted(key for key in fitting if after is None or key > after))

    def delete(self, key: str) -> None:
        """See Store."""
        check_key(key)
        failpoint("store.delete")
        with contextlib.suppress(FileNotFoundError), _client_errors(self.url, key):
            obstore.delete(self._client, key)
        self.drop_copy(key)

    def fetch(self, keys: Sequence[str]) -> None:
        """See Store: many requests at once, and none for what the cache has."""
        wanted = [key for key in keys if key.startswith(_CACHED_RECORDS)]
        missing = sorted(set(wanted) - self._records.known(wanted))
        with ThreadPoolExecutor(_FETCHING_THREADS, "store-fetch") as pool:
            for start in range(0, len(missing), 1000):
                part = missing[start : start + 1000]
                found = zip(part, pool.map(self._download_or_none, part), strict=True)
                self._records.put({key: data for key, data in found if data is not None})

    def has_copy(self, key: str) -> bool:
        """See Store: of a file; of records nobody asks."""
        return key.startswith(_CACHED_FILES) and self._files.has(key)

    def cached_bytes(self) -> int:
        """Bytes of the files in the cache."""
        return self._files.num_bytes()

    def drop_copy(self, key: str) -> bool:
        """See Store."""
        dropped = self._files.drop(key)
        return self._records.drop(key) or dropped

    def close(self) -> None:
        """Closes the cache; one that was made for this object alone is removed."""
        self._records.close()
        if self._own is not None:
            self._own.cleanup()

    def _download(self, key: str) -> bytes:
        try:
            with _client_errors(self.url, key):
                return bytes(obstore.get(self._client, key).bytes())
        except FileNotFoundError:
            raise KeyError(key) from None

    def _parts(self, key: str, size: int) -> Iterator[bytes]:
        """Why in parts: the timeout is that of a request, and a file may be of any size."""
        for start in range(0, size, _PART_BYTES):
            end = min(start + _PART_BYTES, size)
            yield bytes(obstore.get_range(self._client, key, start=start, end=end))

    def _download_or_none(self, key: str) -> bytes | None:
        try:
            return self._download(key)
        except KeyError:
            return None

    def _create_in_parts(self, key: str, path: Path) -> bool:
        with _client_errors(self.url, key):
            try:
                obstore.head(self._client, key)
                return False
            except FileNotFoundError:
                pass
            failpoint("store.write")
            obstore.put(
                self._client,
                key,
                path,
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=4,
            )
        return True

    def _find_lost_reply(self, key: str, content: bytes) -> bool:
        """Whether a create that got no answer has worked. Raises Unavailable while it may."""
        try:
            return self._download(key) == content
        except KeyError:
            raise Unavailable(
                f"{self.url} did not answer, and did not create the object.",
                reason="STORE_UNAVAILABLE",
                hint="Repeat the call.",
            ) from None


def _client(url: str, timeout: float) -> ObjectStore:
    names = _ENDPOINTS[url.partition("://")[0]]
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    options: Any = {
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, 5.0)),
        "allow_http": endpoint.startswith("http://"),  # the operator has written it so
    }
    retry: Any = {
        "max_retries": 3,
        "retry_timeout": timedelta(seconds=timeout),
        "backoff": {
            "init_backoff": timedelta(milliseconds=50),
            "max_backoff": timedelta(seconds=1),
            "base": 2,
        },
    }
    try:
        return from_url(url, client_options=options, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise _bad_url(url, f"{type(error).__name__} from the client") from None


def _check_url(url: str) -> str:
    match = _URL.fullmatch(url)
    if match is None or match["scheme"] not in SCHEMES:
        raise _bad_url(url.partition("://")[0], "it names none of s3://, gs:// and az://")
    if "@" in url or "?" in url:
        raise _bad_url(f"{match['scheme']}://...", "credentials belong into the environment")
    place = match["place"].rstrip("/")
    if not KEY.fullmatch(place) or len(place) > MAX_PLACE_LENGTH:
        raise _bad_url(
            url[:200],
            "bucket and prefix are letters, digits, '.', '_', '-' and '/', "
            f"{MAX_PLACE_LENGTH} characters at most",
        )
    return url.rstrip("/")


def _bad_url(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{url} cannot be a store: {why}.",
        reason="INVALID_STORE",
        item="store",
        found=url,
        allowed="a directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
        hint="Name a directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.",
    )


@contextlib.contextmanager
def _client_errors(url: str, key: str) -> Iterator[None]:
    """Turns what the client raises into Unavailable. Absent and existing objects pass."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except (BaseError, TimeoutError) as error:
        # Why from None: the text of the client's error may hold parts of the request.
        raise Unavailable(
            f"the store {url} failed: {_kind_of(error)}.",
            reason="STORE_UNAVAILABLE",
            found=key,
            hint="Repeat the call; if it stays so, look at the store and the server's credentials.",
        ) from None


_KINDS = (
    ("Connection refused", "nothing listens at its address"),
    ("dns error", "its name is not known"),
    ("timed out", "it did not answer in time"),
    ("kind: Timeout", "it did not answer in time"),
    ("kind: Connect", "it cannot be reached"),
)


def _kind_of(error: Exception) -> str:
    text = str(error)
    code = re.search(r"<Code>(\w{1,64})</Code>", text)
    said = f" ({code[1]})" if code else ""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"it refused the server's credentials{said}"
    for mark, kind in _KINDS:
        if mark in text:
            return kind
    return f"{type(error).__name__}{said}"
