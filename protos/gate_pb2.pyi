from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordScoreRequest(_message.Message):
    __slots__ = ("adapter", "metric", "signature", "data_sha256", "data_name", "decoding", "values", "stopped", "output_token_counts", "latency_seconds", "groups")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_NAME_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    metric: str
    signature: str
    data_sha256: str
    data_name: str
    decoding: str
    values: _containers.RepeatedScalarFieldContainer[float]
    stopped: _containers.RepeatedScalarFieldContainer[bool]
    output_token_counts: _containers.RepeatedScalarFieldContainer[int]
    latency_seconds: _containers.RepeatedScalarFieldContainer[float]
    groups: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, adapter: _Optional[str] = ..., metric: _Optional[str] = ..., signature: _Optional[str] = ..., data_sha256: _Optional[str] = ..., data_name: _Optional[str] = ..., decoding: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., stopped: _Optional[_Iterable[bool]] = ..., output_token_counts: _Optional[_Iterable[int]] = ..., latency_seconds: _Optional[_Iterable[float]] = ..., groups: _Optional[_Iterable[int]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("score_id", "digest", "metric", "mean", "row_count")
    SCORE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    score_id: str
    digest: str
    metric: str
    mean: float
    row_count: int
    def __init__(self, score_id: _Optional[str] = ..., digest: _Optional[str] = ..., metric: _Optional[str] = ..., mean: _Optional[float] = ..., row_count: _Optional[int] = ...) -> None: ...

class GateEvidence(_message.Message):
    __slots__ = ("candidate_score", "current_score", "base_score")
    CANDIDATE_SCORE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_SCORE_FIELD_NUMBER: _ClassVar[int]
    BASE_SCORE_FIELD_NUMBER: _ClassVar[int]
    candidate_score: str
    current_score: str
    base_score: str
    def __init__(self, candidate_score: _Optional[str] = ..., current_score: _Optional[str] = ..., base_score: _Optional[str] = ...) -> None: ...

class GatePolicy(_message.Message):
    __slots__ = ("is_required", "data_sha256", "metric", "min_row_count", "min_delta", "tolerance", "max_stop_rate_drop", "max_length_ratio", "max_latency_ratio", "beats_base")
    IS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MIN_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_RATE_DROP_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    BEATS_BASE_FIELD_NUMBER: _ClassVar[int]
    is_required: bool
    data_sha256: str
    metric: str
    min_row_count: int
    min_delta: float
    tolerance: float
    max_stop_rate_drop: float
    max_length_ratio: float
    max_latency_ratio: float
    beats_base: bool
    def __init__(self, is_required: _Optional[bool] = ..., data_sha256: _Optional[str] = ..., metric: _Optional[str] = ..., min_row_count: _Optional[int] = ..., min_delta: _Optional[float] = ..., tolerance: _Optional[float] = ..., max_stop_rate_drop: _Optional[float] = ..., max_length_ratio: _Optional[float] = ..., max_latency_ratio: _Optional[float] = ..., beats_base: _Optional[bool] = ...) -> None: ...

class GateVerdict(_message.Message):
    __slots__ = ("passed", "metric", "signature", "data_sha256", "data_name", "row_count", "against", "candidate_mean", "current_mean", "base_mean", "delta", "delta_lower", "delta_upper", "checks", "evidence")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_NAME_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_MEAN_FIELD_NUMBER: _ClassVar[int]
    CURRENT_MEAN_FIELD_NUMBER: _ClassVar[int]
    BASE_MEAN_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    DELTA_LOWER_FIELD_NUMBER: _ClassVar[int]
    DELTA_UPPER_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    metric: str
    signature: str
    data_sha256: str
    data_name: str
    row_count: int
    against: str
    candidate_mean: float
    current_mean: float
    base_mean: float
    delta: float
    delta_lower: float
    delta_upper: float
    checks: _containers.RepeatedCompositeFieldContainer[GateCheck]
    evidence: GateEvidence
    def __init__(self, passed: _Optional[bool] = ..., metric: _Optional[str] = ..., signature: _Optional[str] = ..., data_sha256: _Optional[str] = ..., data_name: _Optional[str] = ..., row_count: _Optional[int] = ..., against: _Optional[str] = ..., candidate_mean: _Optional[float] = ..., current_mean: _Optional[float] = ..., base_mean: _Optional[float] = ..., delta: _Optional[float] = ..., delta_lower: _Optional[float] = ..., delta_upper: _Optional[float] = ..., checks: _Optional[_Iterable[_Union[GateCheck, _Mapping]]] = ..., evidence: _Optional[_Union[GateEvidence, _Mapping]] = ...) -> None: ...

class GateCheck(_message.Message):
    __slots__ = ("name", "found", "needed", "passed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    found: str
    needed: str
    passed: bool
    def __init__(self, name: _Optional[str] = ..., found: _Optional[str] = ..., needed: _Optional[str] = ..., passed: _Optional[bool] = ...) -> None: ...
