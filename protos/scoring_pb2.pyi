from polygraft.protos import inputs_pb2 as _inputs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRequest(_message.Message):
    __slots__ = ("adapter", "adapters", "items", "priority", "sticky_key")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STICKY_KEY_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    adapters: _containers.RepeatedCompositeFieldContainer[_inputs_pb2.AdapterShare]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    priority: _inputs_pb2.Priority
    sticky_key: str
    def __init__(self, adapter: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_inputs_pb2.AdapterShare, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., priority: _Optional[_Union[_inputs_pb2.Priority, str]] = ..., sticky_key: _Optional[str] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("prompt", "token_ids", "messages", "variables", "continuations")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    token_ids: _inputs_pb2.TokenIds
    messages: _inputs_pb2.Messages
    variables: _inputs_pb2.Variables
    continuations: _containers.RepeatedCompositeFieldContainer[Continuation]
    def __init__(self, prompt: _Optional[str] = ..., token_ids: _Optional[_Union[_inputs_pb2.TokenIds, _Mapping]] = ..., messages: _Optional[_Union[_inputs_pb2.Messages, _Mapping]] = ..., variables: _Optional[_Union[_inputs_pb2.Variables, _Mapping]] = ..., continuations: _Optional[_Iterable[_Union[Continuation, _Mapping]]] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _inputs_pb2.TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[_inputs_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("items", "adapter_versions", "request_id")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ItemScores]
    adapter_versions: _containers.RepeatedCompositeFieldContainer[_inputs_pb2.ServedVersion]
    request_id: str
    def __init__(self, items: _Optional[_Iterable[_Union[ItemScores, _Mapping]]] = ..., adapter_versions: _Optional[_Iterable[_Union[_inputs_pb2.ServedVersion, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ItemScores(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[ContinuationScore]
    def __init__(self, scores: _Optional[_Iterable[_Union[ContinuationScore, _Mapping]]] = ...) -> None: ...

class ContinuationScore(_message.Message):
    __slots__ = ("logprob", "is_greedy", "tokens", "usage")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    IS_GREEDY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    is_greedy: bool
    tokens: _containers.RepeatedCompositeFieldContainer[ScoredToken]
    usage: _inputs_pb2.Usage
    def __init__(self, logprob: _Optional[float] = ..., is_greedy: _Optional[bool] = ..., tokens: _Optional[_Iterable[_Union[ScoredToken, _Mapping]]] = ..., usage: _Optional[_Union[_inputs_pb2.Usage, _Mapping]] = ...) -> None: ...

class ScoredToken(_message.Message):
    __slots__ = ("token_id", "logprob", "rank")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    rank: int
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ...) -> None: ...
