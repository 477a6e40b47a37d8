"""The public client: both kinds on one server, errors as exceptions, retries, nothing heavy."""

from __future__ import annotations

import inspect
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_support.directories import write_adapter
from server_support.service import DSUM_RECIPE, Service, service_in_thread

import polygraft.client as public
from polygraft.client import (
    AdapterInUse,
    AdapterNotFound,
    AliasConflict,
    AsyncClient,
    Client,
    DeadlineExpired,
    GenerateOptions,
    InvalidRequest,
    Overloaded,
    RetryPolicy,
    ScoreItem,
    Unavailable,
)
from polygraft.client.retry import NO_RETRY
from polygraft.client.upload import UploadSource, find_adapter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the whole module, on a loop in another thread."""
    with service_in_thread(tmp_path_factory.mktemp("client") / "store") as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The shared service, left as it was found."""
    yield shared
    shared.engine.submit_error = shared.engine.step_error = shared.engine.token_ids = None
    shared.engine.may_step.set()
    shared.engine.reply = "Hello, wörld! 😀"


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address, timeout=10) as client:
        yield client


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys, polygraft.client; print(*sorted(sys.modules))"
    command = [sys.executable, "-P", "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "pydantic"} & set(loaded)


def test_everything_that_is_exported_exists_and_is_listed_once() -> None:
    assert len(set(public.__all__)) == len(public.__all__)
    for name in public.__all__:
        assert hasattr(public, name)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(client: type) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(inspect.signature(getattr(client, name)).parameters)
            for name in dir(client)
            if not name.startswith("_") and name != "stream"
        }

    assert methods(Client) == methods(AsyncClient)
    assert methods(Client)["tokenize"] == ("self", "prompt", "adapter", "adapters", "options")
    assert Client.move_alias.__doc__ == AsyncClient.move_alias.__doc__
    assert (
        str(inspect.signature(Client("nowhere").delete_version)) == "(name: 'str', number: 'int')"
    )


def test_the_ten_lines_of_the_docstring(service: Service, tmp_path: Path) -> None:
    service.publish("ten-lines", tmp_path / "a", recipe=DSUM_RECIPE)
    shown = []
    with Client(service.address) as client:
        shown.append(client.generate("Once upon a time", max_output_tokens=32).text)
        for piece in client.stream(variables={"dialogue": "..."}, adapter="ten-lines"):
            shown.append(piece.text)
        client.upload_adapter(
            write_adapter(tmp_path / "b"), "ten-lines", alias="live", allow_unverified_base=True
        )
    assert shown[0] == "".join(shown[1:]) == service.engine.reply


async def test_both_clients_give_the_same(service: Service, tmp_path: Path) -> None:
    service.publish("both", tmp_path / "a", recipe=DSUM_RECIPE)
    options: GenerateOptions = {
        "seed": 7,
        "top_logprobs": 0,
        "return_token_ids": True,
        "stop": ["!"],
    }
    items = [ScoreItem("b", prompt="a"), ScoreItem([3], token_ids=[1, 2])]
    with Client(service.address) as one:
        async with AsyncClient(service.address) as two:
            first = one.generate("Hi", **options)
            second = await two.generate("Hi", **options)
            assert first.text == second.text == "Hello, wörld"
            assert first.token_ids == second.token_ids
            assert one.score(items) == await two.score(items)
            assert one.tokenize("Hi") == await two.tokenize("Hi")
            assert one.detokenize([1, 2]) == await two.detokenize([1, 2])
            assert one.model() == await two.model()
            assert one.list_adapters() == await two.list_adapters()
            assert one.get_adapter("both") == await two.get_adapter("both")
            assert one.list_versions("both") == await two.list_versions("both")


async def test_the_asynchronous_client_manages_adapters(service: Service, tmp_path: Path) -> None:
    async with AsyncClient(service.address) as client:
        folder = write_adapter(tmp_path / "a")
        await client.upload_adapter(folder, "managed", allow_unverified_base=True)
        assert (await client.load_adapter("managed")).tier == "device"
        assert (await client.unload_adapter("managed")).tier == "store"
        assert (await client.move_alias("managed", "canary", 1)).generation == 1
        with pytest.raises(AdapterInUse):
            await client.delete_version("managed", 1)
        await client.delete_adapter("managed")


def test_the_synchronous_client_manages_adapters(client: Client, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    told: list[int] = []
    upload = client.upload_adapter(
        folder,
        "synced",
        alias="canary",
        allow_unverified_base=True,
        progress=lambda sent, total: told.append(sent),
    )
    assert upload.alias is not None
    assert upload.alias.alias == "canary"
    assert told == sorted(told)
    assert client.load_adapter("synced", pin=True).tier == "device"
    assert client.unload_adapter("synced").tier == "store"
    with pytest.raises(AliasConflict):
        client.move_alias("synced", "live", 1, expected_generation=9)
    with pytest.raises(AdapterInUse):
        client.delete_version("synced", 1)
    client.delete_adapter("synced")
    with pytest.raises(AdapterNotFound):
        client.get_adapter("synced")


def test_a_stream_gives_pieces_and_then_the_whole(service: Service, client: Client) -> None:
    stream = client.stream("Hi", top_logprobs=0, return_token_ids=True)
    assert stream.generation is None
    pieces = list(stream)
    whole = stream.generation
    assert whole is not None
    assert "".join(piece.text for piece in pieces) == whole.text == service.engine.reply
    assert tuple(t for piece in pieces for t in piece.token_ids) == whole.token_ids
    assert len(whole.logprobs) == len(whole.token_ids) == whole.usage.output_tokens


def wait_until_idle(service: Service) -> None:
    deadline = time.monotonic() + 2
    while any(service.server.ledger().values()) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not any(service.server.ledger().values())


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_leaving_a_stream_early_ends_the_generation(
    service: Service, client: Client, how: str
) -> None:
    service.engine.token_ids = lambda request: itertools.repeat(0)
    stream = client.stream("Hi", max_output_tokens=500)
    next(stream)
    service.engine.may_step.clear()
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    del stream
    wait_until_idle(service)


def test_errors_come_back_as_what_the_server_raised(client: Client) -> None:
    with pytest.raises(AdapterNotFound) as caught:
        client.generate("Hi", adapter="nope")
    assert caught.value.code == "ADAPTER_NOT_FOUND"
    assert len(caught.value.metadata["request_id"]) == 32
    assert "nope" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (None, {}),
        ("Hi", {"token_ids": [1]}),
        (None, {"variables": {}, "messages": []}),
    ],
)
def test_exactly_one_input_is_needed(
    client: Client, prompt: str | None, options: GenerateOptions
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.generate(prompt, **options)
    assert caught.value.code == "MISSING_INPUT"


def test_a_deadline_is_always_set_and_can_be_changed(service: Service, client: Client) -> None:
    service.engine.may_step.clear()
    started = time.monotonic()
    with pytest.raises(DeadlineExpired):
        client.generate("Hi", timeout=0.1)
    with (
        Client(service.address, timeout=0.1) as hasty,
        pytest.raises(DeadlineExpired),
    ):
        hasty.generate("Hi")
    with pytest.raises(DeadlineExpired):
        list(client.stream("Hi", timeout=0.1))
    assert time.monotonic() - started < 2
    wait_until_idle(service)


def test_no_server_is_said_in_one_sentence_with_the_way_out() -> None:
    with (
        Client("127.0.0.1:1", retry=RetryPolicy(attempts=2, first_wait=0.01)) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.model()
    assert caught.value.code == "UNREACHABLE"
    assert "polygraft serve" in str(caught.value)


class FlakyEngine:
    """Raises an error for the first requests, then works."""

    def __init__(self, service: Service, error: Exception, failures: int) -> None:
        self._service, self._error = service, error
        self.attempts = 0
        self._failures = failures

    def __call__(self, request: object) -> None:
        self.attempts += 1
        if self.attempts <= self._failures:
            raise self._error


@pytest.mark.parametrize(
    "error", [Unavailable("starting.", reason="STARTING"), Overloaded("full.")]
)
def test_what_may_succeed_later_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, Overloaded):
        error.retry_after = 0.05
    flaky = FlakyEngine(service, error, failures=2)
    monkeypatch.setattr(service.engine._admission, "check", flaky)
    with Client(service.address, retry=RetryPolicy(first_wait=0.01)) as client:
        assert client.generate("Hi").text == service.engine.reply
        assert flaky.attempts == 3
        flaky.attempts = 0
        assert "".join(piece.text for piece in client.stream("Hi")) == service.engine.reply
        assert flaky.attempts == 3


def test_giving_up_raises_the_last_error(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = FlakyEngine(service, Unavailable("starting.", reason="STARTING"), failures=99)
    monkeypatch.setattr(service.engine._admission, "check", flaky)
    with (
        Client(service.address, retry=RetryPolicy(attempts=3, first_wait=0.01)) as client,
        pytest.raises(Unavailable, match="starting"),
    ):
        client.generate("Hi")
    assert flaky.attempts == 3


def test_what_cannot_succeed_is_not_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = FlakyEngine(service, InvalidRequest("bad."), failures=99)
    monkeypatch.setattr(service.engine._admission, "check", flaky)
    with Client(service.address) as client, pytest.raises(InvalidRequest):
        client.generate("Hi")
    assert flaky.attempts == 1


def test_a_stream_that_has_begun_is_never_tried_again(service: Service, client: Client) -> None:
    before = len(service.engine.requests)
    stream = client.stream("Hi")
    next(stream)
    service.engine.step_error = Unavailable("dying.")
    with pytest.raises(Unavailable):
        list(stream)
    assert len(service.engine.requests) == before + 1


def test_waits_grow_and_end() -> None:
    policy = RetryPolicy(attempts=10, first_wait=0.1, longest_wait=2.0)
    waits = [policy.wait_after(attempt, Unavailable("x.")) for attempt in range(1, 11)]
    assert waits[-1] is None
    for wait, ideal in zip(waits[:-1], [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2], strict=True):
        assert wait is not None
        assert 0.79 * ideal <= wait <= 1.21 * ideal
    assert NO_RETRY.wait_after(1, Unavailable("x.")) is None


def test_one_client_serves_many_threads(service: Service, client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: client.generate("Hi").text, range(40)))
    assert set(texts) == {service.engine.reply}


def test_a_chunked_file_is_whole_again(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 12_000)
    source = UploadSource.open(folder)
    messages = list(source.messages(source.header("x"), {}))
    received: dict[int, bytes] = {}
    for message in messages[1:]:
        chunk = message.chunk
        assert len(chunk.data) <= 1 << 20
        assert chunk.offset_bytes == len(received.get(chunk.file_index, b""))
        received[chunk.file_index] = received.get(chunk.file_index, b"") + chunk.data
    for index, declared in enumerate(messages[0].header.files):
        assert received[index] == source.files[declared.name].read_bytes()


def test_the_adapter_folder_of_a_run_brings_the_manifest_one_folder_up(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "run" / "adapter")
    manifest = tmp_path / "run" / "manifest.json"
    names = ["adapter_config.json", "adapter_model.safetensors"]
    for content in ("{}", "[]", "no JSON", json.dumps({"schema": 3, "files": []})):
        manifest.write_text(content)  # another program's
        assert sorted(find_adapter(folder)) == names
    listed = [{"name": name} for name in names]
    manifest.write_text(json.dumps({"schema": "polygraft.adapter/1", "files": listed}))
    assert find_adapter(folder) == find_adapter(tmp_path / "run")
    assert find_adapter(folder)["manifest.json"] == manifest
    assert sorted(find_adapter(write_adapter(tmp_path / "run" / "other"))) == names


def test_only_the_adapters_own_files_are_sent(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    for name in ("README.md", "optimizer.pt", "tokenizer.json"):
        (folder / name).write_text("x")
    assert sorted(find_adapter(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
