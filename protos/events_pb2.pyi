import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from polygraft.protos import aliases_pb2 as _aliases_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_EVENT_KIND_UNSPECIFIED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_WATCHING: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_MISSED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_PUBLISHED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_VERSION_DELETED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_ALIAS_MOVED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_ALIAS_REMOVED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_CANARY_WITHDRAWN: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_QUARANTINED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_LOADED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_EVICTED: _ClassVar[AdapterEventKind]
ADAPTER_EVENT_KIND_UNSPECIFIED: AdapterEventKind
ADAPTER_EVENT_KIND_WATCHING: AdapterEventKind
ADAPTER_EVENT_KIND_MISSED: AdapterEventKind
ADAPTER_EVENT_KIND_PUBLISHED: AdapterEventKind
ADAPTER_EVENT_KIND_VERSION_DELETED: AdapterEventKind
ADAPTER_EVENT_KIND_ALIAS_MOVED: AdapterEventKind
ADAPTER_EVENT_KIND_ALIAS_REMOVED: AdapterEventKind
ADAPTER_EVENT_KIND_CANARY_WITHDRAWN: AdapterEventKind
ADAPTER_EVENT_KIND_QUARANTINED: AdapterEventKind
ADAPTER_EVENT_KIND_LOADED: AdapterEventKind
ADAPTER_EVENT_KIND_EVICTED: AdapterEventKind

class WatchAdaptersRequest(_message.Message):
    __slots__ = ("adapter_name", "cursor", "include_residency")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    cursor: str
    include_residency: bool
    def __init__(self, adapter_name: _Optional[str] = ..., cursor: _Optional[str] = ..., include_residency: _Optional[bool] = ...) -> None: ...

class AdapterEvent(_message.Message):
    __slots__ = ("kind", "cursor", "event_time", "adapter_name", "version_number", "digest", "alias", "tier", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: AdapterEventKind
    cursor: str
    event_time: _timestamp_pb2.Timestamp
    adapter_name: str
    version_number: int
    digest: str
    alias: _aliases_pb2.Alias
    tier: str
    detail: str
    def __init__(self, kind: _Optional[_Union[AdapterEventKind, str]] = ..., cursor: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., adapter_name: _Optional[str] = ..., version_number: _Optional[int] = ..., digest: _Optional[str] = ..., alias: _Optional[_Union[_aliases_pb2.Alias, _Mapping]] = ..., tier: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
