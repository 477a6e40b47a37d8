"""Every method of the two services once, for both clients: what is sent, how the answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from polygraft.client.answers import Generation, Score
from polygraft.client.options import (
    GenerateOptions,
    PriorityName,
    ScoreItem,
    TextOptions,
    write_adapters,
    write_generate,
    write_input,
    write_score,
)
from polygraft.client.results import Adapter, AdapterVersion, Alias, Model
from polygraft.protos import adapters_pb2, generation_pb2, model_pb2

T = TypeVar("T")

SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"],
)
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in SERVICES for method in service.methods
}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary RPC: its method, its request, and what the caller gets of the response."""

    method: str
    request: Message
    read: Callable[[Any], T]
    timeout: float | None = None  # seconds; None: the client's


def path_of(method: str) -> str:
    """The path on the wire, "/package.Service/Method"."""
    descriptor = METHODS[method]
    return f"/{descriptor.containing_service.full_name}/{method}"


def parser_of(method: str) -> Callable[[bytes], Any]:
    """How response bytes become a message."""
    parse: Callable[[bytes], Any] = GetMessageClass(METHODS[method].output_type).FromString
    return parse


def generate(prompt: str | None, options: GenerateOptions) -> Call[Generation]:
    """One answer."""
    request = write_generate(prompt, options)
    return Call("Generate", request, Generation.read, options.get("timeout"))


def score(
    items: Sequence[ScoreItem],
    adapter: str,
    adapters: Mapping[str, float] | None,
    priority: PriorityName | None,
    timeout: float | None,
) -> Call[list[Score]]:
    """Log-likelihoods of continuations."""
    request = write_score(items, adapter, adapters, priority)
    return Call("Score", request, Score.read_all, timeout)


def tokenize(
    prompt: str | None,
    adapter: str,
    adapters: Mapping[str, float] | None,
    options: TextOptions,
) -> Call[list[int]]:
    """Token ids of an input."""
    given = write_input(prompt, options)
    shares = write_adapters(adapters)
    request = model_pb2.TokenizeRequest(adapter=adapter, adapters=shares, **given)
    return Call("Tokenize", request, lambda response: list(response.token_ids))


def detokenize(token_ids: Sequence[int], skip_special_tokens: bool) -> Call[str]:
    """Text of token ids."""
    request = model_pb2.DetokenizeRequest(
        token_ids=token_ids, skip_special_tokens=skip_special_tokens
    )
    return Call("Detokenize", request, lambda response: str(response.text))


def model() -> Call[Model]:
    """The base's facts."""
    return Call("GetModel", model_pb2.GetModelRequest(), Model.read)


def get_adapter(reference: str) -> Call[Adapter]:
    """An adapter and the version that a reference names."""
    return Call("GetAdapter", adapters_pb2.GetAdapterRequest(adapter=reference), Adapter.read)


def list_adapters(page_token: str) -> Call[tuple[list[Adapter], str]]:
    """A page of adapters and the token of the next."""
    return Call(
        "ListAdapters",
        adapters_pb2.ListAdaptersRequest(page_token=page_token),
        lambda response: (
            [Adapter.read(adapter) for adapter in response.adapters],
            response.next_page_token,
        ),
    )


def list_versions(name: str, page_token: str) -> Call[tuple[list[AdapterVersion], str]]:
    """A page of versions and the token of the next."""
    return Call(
        "ListAdapterVersions",
        adapters_pb2.ListAdapterVersionsRequest(adapter_name=name, page_token=page_token),
        lambda response: (
            [AdapterVersion.read(version) for version in response.versions],
            response.next_page_token,
        ),
    )


def delete_adapter(name: str) -> Call[None]:
    """Remove a name."""
    request = adapters_pb2.DeleteAdapterRequest(adapter_name=name)
    return Call("DeleteAdapter", request, lambda _: None)


def delete_version(name: str, number: int) -> Call[None]:
    """Remove one version."""
    request = adapters_pb2.DeleteAdapterVersionRequest(adapter_name=name, version_number=number)
    return Call("DeleteAdapterVersion", request, lambda _: None)


def move_alias(
    name: str, alias: str, number: int, expected_generation: int | None, reason: str
) -> Call[Alias]:
    """Point an alias to a version."""
    request = adapters_pb2.UpdateAliasRequest(
        adapter_name=name,
        alias=alias,
        version_number=number,
        expected_generation=expected_generation,
        reason=reason,
    )
    return Call("UpdateAlias", request, Alias.read)


def load_adapter(reference: str, pin: bool, timeout: float | None) -> Call[AdapterVersion]:
    """Bring a version onto the device."""
    request = adapters_pb2.LoadAdapterRequest(adapter=reference, pin=pin)
    return Call("LoadAdapter", request, AdapterVersion.read, timeout)


def unload_adapter(reference: str, timeout: float | None) -> Call[AdapterVersion]:
    """Remove a version from device and host."""
    request = adapters_pb2.UnloadAdapterRequest(adapter=reference)
    return Call("UnloadAdapter", request, AdapterVersion.read, timeout)
