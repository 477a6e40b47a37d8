"""Every unary method of the two services once: its arguments, what is sent, how the answer is read.

Both clients make their methods of these, docstrings included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, TypeVar, Unpack

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from polygraft.client.answers import Generation, Score
from polygraft.client.call import Call
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
from polygraft.client.results import Adapter, AdapterVersion, Model, UploadStatus
from polygraft.client.resume import persisted_of
from polygraft.protos import adapters_pb2, generation_pb2, model_pb2

T = TypeVar("T")

SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"],
)
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in SERVICES for method in service.methods
}


def describe(method: Callable[..., Any], make: Callable[..., Call[Any]]) -> None:
    """Give a client's method the name, docstring and arguments of what makes its call."""
    signature = inspect.signature(make)
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    update_wrapper(method, make)
    del method.__wrapped__  # type: ignore[attr-defined]
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[myself, *signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )


def path_of(method: str) -> str:
    """The path on the wire, "/package.Service/Method"."""
    descriptor = METHODS[method]
    return f"/{descriptor.containing_service.full_name}/{method}"


def parser_of(method: str) -> Callable[[bytes], Any]:
    """How response bytes become a message."""
    parse: Callable[[bytes], Any] = GetMessageClass(METHODS[method].output_type).FromString
    return parse


def generate(prompt: str | None = None, **options: Unpack[GenerateOptions]) -> Call[Generation]:
    """The whole answer."""
    request = write_generate(prompt, options)
    return Call("Generate", request, Generation.read, options.get("timeout"))


def score(
    items: Sequence[ScoreItem],
    *,
    adapter: str = "",
    adapters: Mapping[str, float] | None = None,
    priority: PriorityName | None = None,
    sticky_key: str = "",
    timeout: float | None = None,
) -> Call[list[Score]]:
    """Log-likelihoods of continuations, in the order of the items."""
    request = write_score(items, adapter, adapters, priority, sticky_key)
    return Call("Score", request, Score.read_all, timeout)


def tokenize(
    prompt: str | None = None,
    *,
    adapter: str = "",
    adapters: Mapping[str, float] | None = None,
    **options: Unpack[TextOptions],
) -> Call[list[int]]:
    """The token ids that `generate` would feed to the model."""
    given = write_input(prompt, options)
    shares = write_adapters(adapters)
    request = model_pb2.TokenizeRequest(adapter=adapter, adapters=shares, **given)
    return Call("Tokenize", request, lambda response: list(response.token_ids))


def detokenize(token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> Call[str]:
    """The text of token ids."""
    request = model_pb2.DetokenizeRequest(
        token_ids=token_ids, skip_special_tokens=skip_special_tokens
    )
    return Call("Detokenize", request, lambda response: str(response.text))


def model() -> Call[Model]:
    """The base's facts and the server's limits."""
    return Call("GetModel", model_pb2.GetModelRequest(), Model.read)


def get_adapter(reference: str) -> Call[Adapter]:
    """An adapter with the version that the reference names, manifest included."""
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
    """Remove a name with all its versions and aliases."""
    request = adapters_pb2.DeleteAdapterRequest(adapter_name=name)
    return Call("DeleteAdapter", request, lambda _: None)


def delete_version(name: str, number: int) -> Call[None]:
    """Remove one version."""
    request = adapters_pb2.DeleteAdapterVersionRequest(adapter_name=name, version_number=number)
    return Call("DeleteAdapterVersion", request, lambda _: None)


def load_adapter(
    reference: str, *, pin: bool = False, timeout: float | None = None
) -> Call[AdapterVersion]:
    """Bring a version onto the device; with `pin` it stays until it is unloaded."""
    request = adapters_pb2.LoadAdapterRequest(adapter=reference, pin=pin)
    return Call("LoadAdapter", request, AdapterVersion.read, timeout)


def unload_adapter(reference: str, *, timeout: float | None = None) -> Call[AdapterVersion]:
    """Remove a version from device and host when its running requests have ended."""
    request = adapters_pb2.UnloadAdapterRequest(adapter=reference)
    return Call("UnloadAdapter", request, AdapterVersion.read, timeout)


def persisted(upload_id: str, timeout: float) -> Call[dict[str, int]]:
    """Bytes of each file that the server has of an upload."""
    request = adapters_pb2.GetUploadRequest(upload_id=upload_id)
    return Call("GetUpload", request, persisted_of, timeout)


def get_upload(upload_id: str) -> Call[UploadStatus]:
    """How far an upload has come; UploadNotFound when the server knows none of this id."""
    request = adapters_pb2.GetUploadRequest(upload_id=upload_id)
    return Call("GetUpload", request, UploadStatus.read)
