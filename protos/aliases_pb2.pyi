import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from polygraft.protos import gate_pb2 as _gate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Alias(_message.Message):
    __slots__ = ("adapter_name", "alias", "version_number", "digest", "generation", "update_time", "reason", "targets", "moved_by", "restored_generation", "is_forced", "policy", "verdict")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BY_FIELD_NUMBER: _ClassVar[int]
    RESTORED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    IS_FORCED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    alias: str
    version_number: int
    digest: str
    generation: int
    update_time: _timestamp_pb2.Timestamp
    reason: str
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    moved_by: str
    restored_generation: int
    is_forced: bool
    policy: _gate_pb2.GatePolicy
    verdict: _gate_pb2.GateVerdict
    def __init__(self, adapter_name: _Optional[str] = ..., alias: _Optional[str] = ..., version_number: _Optional[int] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., moved_by: _Optional[str] = ..., restored_generation: _Optional[int] = ..., is_forced: _Optional[bool] = ..., policy: _Optional[_Union[_gate_pb2.GatePolicy, _Mapping]] = ..., verdict: _Optional[_Union[_gate_pb2.GateVerdict, _Mapping]] = ...) -> None: ...

class AliasTarget(_message.Message):
    __slots__ = ("version_number", "weight", "digest")
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    version_number: int
    weight: int
    digest: str
    def __init__(self, version_number: _Optional[int] = ..., weight: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class UpdateAliasRequest(_message.Message):
    __slots__ = ("adapter_name", "alias", "version_number", "expected_generation", "reason", "targets", "gate", "policy", "force")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    alias: str
    version_number: int
    expected_generation: int
    reason: str
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    gate: _gate_pb2.GateEvidence
    policy: _gate_pb2.GatePolicy
    force: bool
    def __init__(self, adapter_name: _Optional[str] = ..., alias: _Optional[str] = ..., version_number: _Optional[int] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., gate: _Optional[_Union[_gate_pb2.GateEvidence, _Mapping]] = ..., policy: _Optional[_Union[_gate_pb2.GatePolicy, _Mapping]] = ..., force: _Optional[bool] = ...) -> None: ...

class DeleteAliasRequest(_message.Message):
    __slots__ = ("adapter_name", "alias", "expected_generation", "reason")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    alias: str
    expected_generation: int
    reason: str
    def __init__(self, adapter_name: _Optional[str] = ..., alias: _Optional[str] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListAliasHistoryRequest(_message.Message):
    __slots__ = ("adapter_name", "alias", "page_size", "page_token")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    alias: str
    page_size: int
    page_token: str
    def __init__(self, adapter_name: _Optional[str] = ..., alias: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAliasHistoryResponse(_message.Message):
    __slots__ = ("moves", "next_page_token")
    MOVES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[Alias]
    next_page_token: str
    def __init__(self, moves: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RollbackAliasRequest(_message.Message):
    __slots__ = ("adapter_name", "alias", "generation", "expected_generation", "reason")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    alias: str
    generation: int
    expected_generation: int
    reason: str
    def __init__(self, adapter_name: _Optional[str] = ..., alias: _Optional[str] = ..., generation: _Optional[int] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
