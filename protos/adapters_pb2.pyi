import datetime

from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from polygraft.protos import aliases_pb2 as _aliases_pb2
from polygraft.protos import events_pb2 as _events_pb2
from polygraft.protos import gate_pb2 as _gate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPLOAD_STATE_UNSPECIFIED: _ClassVar[UploadState]
    UPLOAD_STATE_RECEIVING: _ClassVar[UploadState]
    UPLOAD_STATE_VALIDATING: _ClassVar[UploadState]
    UPLOAD_STATE_PUBLISHED: _ClassVar[UploadState]
    UPLOAD_STATE_REJECTED: _ClassVar[UploadState]
    UPLOAD_STATE_EXPIRED: _ClassVar[UploadState]

class AdapterKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_KIND_UNSPECIFIED: _ClassVar[AdapterKind]
    ADAPTER_KIND_LORA: _ClassVar[AdapterKind]
    ADAPTER_KIND_SOFT_PROMPT: _ClassVar[AdapterKind]
    ADAPTER_KIND_PREFIX: _ClassVar[AdapterKind]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_STORE: _ClassVar[Tier]
    TIER_LOADING: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
    TIER_FAILED: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
UPLOAD_STATE_UNSPECIFIED: UploadState
UPLOAD_STATE_RECEIVING: UploadState
UPLOAD_STATE_VALIDATING: UploadState
UPLOAD_STATE_PUBLISHED: UploadState
UPLOAD_STATE_REJECTED: UploadState
UPLOAD_STATE_EXPIRED: UploadState
ADAPTER_KIND_UNSPECIFIED: AdapterKind
ADAPTER_KIND_LORA: AdapterKind
ADAPTER_KIND_SOFT_PROMPT: AdapterKind
ADAPTER_KIND_PREFIX: AdapterKind
TIER_UNSPECIFIED: Tier
TIER_STORE: Tier
TIER_LOADING: Tier
TIER_HOST: Tier
TIER_DEVICE: Tier
TIER_FAILED: Tier
TIER_DISK: Tier

class UploadAdapterRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: FileChunk
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("adapter_name", "files", "alias", "allow_unverified_base", "allow_no_effect", "upload_id", "no_alias")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNVERIFIED_BASE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NO_EFFECT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    NO_ALIAS_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    files: _containers.RepeatedCompositeFieldContainer[FileDeclaration]
    alias: str
    allow_unverified_base: bool
    allow_no_effect: bool
    upload_id: str
    no_alias: bool
    def __init__(self, adapter_name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileDeclaration, _Mapping]]] = ..., alias: _Optional[str] = ..., allow_unverified_base: _Optional[bool] = ..., allow_no_effect: _Optional[bool] = ..., upload_id: _Optional[str] = ..., no_alias: _Optional[bool] = ...) -> None: ...

class FileDeclaration(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("file_index", "offset_bytes", "data", "crc32c")
    FILE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    file_index: int
    offset_bytes: int
    data: bytes
    crc32c: int
    def __init__(self, file_index: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class UploadAdapterResponse(_message.Message):
    __slots__ = ("version", "alias", "warnings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    version: AdapterVersion
    alias: _aliases_pb2.Alias
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., alias: _Optional[_Union[_aliases_pb2.Alias, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class FileProgress(_message.Message):
    __slots__ = ("name", "size_bytes", "persisted_size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    persisted_size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., persisted_size_bytes: _Optional[int] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("upload_id", "adapter_name", "state", "files", "version", "rejection_reason")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REJECTION_REASON_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    adapter_name: str
    state: UploadState
    files: _containers.RepeatedCompositeFieldContainer[FileProgress]
    version: AdapterVersion
    rejection_reason: str
    def __init__(self, upload_id: _Optional[str] = ..., adapter_name: _Optional[str] = ..., state: _Optional[_Union[UploadState, str]] = ..., files: _Optional[_Iterable[_Union[FileProgress, _Mapping]]] = ..., version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., rejection_reason: _Optional[str] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class DownloadAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    def __init__(self, adapter: _Optional[str] = ...) -> None: ...

class DownloadAdapterResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: DownloadHeader
    chunk: FileChunk
    def __init__(self, header: _Optional[_Union[DownloadHeader, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class DownloadHeader(_message.Message):
    __slots__ = ("version", "files")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    version: AdapterVersion
    files: _containers.RepeatedCompositeFieldContainer[FileDeclaration]
    def __init__(self, version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FileDeclaration, _Mapping]]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "version_count", "aliases", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version_count: int
    aliases: _containers.RepeatedCompositeFieldContainer[_aliases_pb2.Alias]
    version: AdapterVersion
    def __init__(self, name: _Optional[str] = ..., version_count: _Optional[int] = ..., aliases: _Optional[_Iterable[_Union[_aliases_pb2.Alias, _Mapping]]] = ..., version: _Optional[_Union[AdapterVersion, _Mapping]] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("adapter_name", "number", "digest", "kind", "is_verified", "create_time", "size_bytes", "max_rank", "virtual_token_count", "variable_names", "tier", "reference_count", "manifest_json", "is_proven")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IS_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_NAMES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    IS_PROVEN_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    number: int
    digest: str
    kind: AdapterKind
    is_verified: bool
    create_time: _timestamp_pb2.Timestamp
    size_bytes: int
    max_rank: int
    virtual_token_count: int
    variable_names: _containers.RepeatedScalarFieldContainer[str]
    tier: Tier
    reference_count: int
    manifest_json: str
    is_proven: bool
    def __init__(self, adapter_name: _Optional[str] = ..., number: _Optional[int] = ..., digest: _Optional[str] = ..., kind: _Optional[_Union[AdapterKind, str]] = ..., is_verified: _Optional[bool] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., size_bytes: _Optional[int] = ..., max_rank: _Optional[int] = ..., virtual_token_count: _Optional[int] = ..., variable_names: _Optional[_Iterable[str]] = ..., tier: _Optional[_Union[Tier, str]] = ..., reference_count: _Optional[int] = ..., manifest_json: _Optional[str] = ..., is_proven: _Optional[bool] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    def __init__(self, adapter: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListAdapterVersionsRequest(_message.Message):
    __slots__ = ("adapter_name", "page_size", "page_token")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    page_size: int
    page_token: str
    def __init__(self, adapter_name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAdapterVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[AdapterVersion]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[AdapterVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteAdapterRequest(_message.Message):
    __slots__ = ("adapter_name",)
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    def __init__(self, adapter_name: _Optional[str] = ...) -> None: ...

class DeleteAdapterVersionRequest(_message.Message):
    __slots__ = ("adapter_name", "version_number")
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    adapter_name: str
    version_number: int
    def __init__(self, adapter_name: _Optional[str] = ..., version_number: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("adapter", "pin")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    pin: bool
    def __init__(self, adapter: _Optional[str] = ..., pin: _Optional[bool] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    def __init__(self, adapter: _Optional[str] = ...) -> None: ...
