from polygraft.protos import inputs_pb2 as _inputs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenizeRequest(_message.Message):
    __slots__ = ("adapter", "adapters", "prompt", "messages", "variables")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    adapters: _containers.RepeatedCompositeFieldContainer[_inputs_pb2.AdapterShare]
    prompt: str
    messages: _inputs_pb2.Messages
    variables: _inputs_pb2.Variables
    def __init__(self, adapter: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_inputs_pb2.AdapterShare, _Mapping]]] = ..., prompt: _Optional[str] = ..., messages: _Optional[_Union[_inputs_pb2.Messages, _Mapping]] = ..., variables: _Optional[_Union[_inputs_pb2.Variables, _Mapping]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "skip_special_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "architecture", "fingerprint", "context_length", "vocab_size", "hidden_size", "layer_count", "dtype", "eos_token_ids", "has_chat_template", "limits", "server_version", "bos_token_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    fingerprint: Fingerprint
    context_length: int
    vocab_size: int
    hidden_size: int
    layer_count: int
    dtype: str
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    has_chat_template: bool
    limits: Limits
    server_version: str
    bos_token_id: int
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., layer_count: _Optional[int] = ..., dtype: _Optional[str] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., has_chat_template: _Optional[bool] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., bos_token_id: _Optional[int] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("weights_sha256", "config_sha256", "tokenizer_sha256")
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    def __init__(self, weights_sha256: _Optional[str] = ..., config_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_size_bytes", "max_adapter_size_bytes", "max_rank", "max_virtual_token_count")
    MAX_MESSAGE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTER_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_VIRTUAL_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    max_message_size_bytes: int
    max_adapter_size_bytes: int
    max_rank: int
    max_virtual_token_count: int
    def __init__(self, max_message_size_bytes: _Optional[int] = ..., max_adapter_size_bytes: _Optional[int] = ..., max_rank: _Optional[int] = ..., max_virtual_token_count: _Optional[int] = ...) -> None: ...
