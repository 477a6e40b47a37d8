"""The Python client of a Polygraft server, synchronous and asynchronous.

    from polygraft.client import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("Once upon a time", max_output_tokens=32).text)
        for piece in client.stream(variables={"dialogue": "..."}, adapter="dsum"):
            print(piece.text, end="", flush=True)
        client.upload_adapter("runs/dsum/", "dsum", alias="live")

`AsyncClient` has the same methods, to be awaited. Errors are those of `polygraft.adapters.errors`:
`error.code` is the reason ("ADAPTER_NOT_FOUND"), `error.message` one sentence, `error.metadata`
the details with the server's `request_id`; `Overloaded.retry_after` says when to come back.
Importing this loads neither torch nor transformers.
"""

from polygraft.adapters.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterInUse,
    AdapterInvalid,
    AdapterNotFound,
    AdapterUnsupported,
    AliasConflict,
    DeadlineExpired,
    GateRefused,
    InvalidRequest,
    NonFinite,
    NotFound,
    Overloaded,
    PolygraftError,
    Unavailable,
    UploadConflict,
    UploadCorrupt,
    UploadNotFound,
    UploadOutOfRange,
)
from polygraft.client.aio import AsyncClient, AsyncStream
from polygraft.client.alias_results import (
    AdapterEvent,
    Alias,
    AliasTarget,
    GateCheck,
    GatePolicy,
    GateVerdict,
    RecordedScore,
)
from polygraft.client.answers import (
    Choice,
    Generation,
    Piece,
    Score,
    ScoredToken,
    ServedVersion,
    TokenLogprob,
    TopToken,
    Usage,
)
from polygraft.client.options import GenerateOptions, ScoreItem
from polygraft.client.results import Adapter, AdapterVersion, Model, Upload, UploadStatus
from polygraft.client.retry import RetryPolicy
from polygraft.client.sync import Client, Stream
from polygraft.client.watch import AsyncWatch, Watch

__all__ = [
    "Adapter",
    "AdapterCorrupt",
    "AdapterEvent",
    "AdapterInUse",
    "AdapterIncompatible",
    "AdapterInvalid",
    "AdapterNotFound",
    "AdapterUnsupported",
    "AdapterVersion",
    "Alias",
    "AliasConflict",
    "AliasTarget",
    "AsyncClient",
    "AsyncStream",
    "AsyncWatch",
    "Choice",
    "Client",
    "DeadlineExpired",
    "GateCheck",
    "GatePolicy",
    "GateRefused",
    "GateVerdict",
    "GenerateOptions",
    "Generation",
    "InvalidRequest",
    "Model",
    "NonFinite",
    "NotFound",
    "Overloaded",
    "Piece",
    "PolygraftError",
    "RecordedScore",
    "RetryPolicy",
    "Score",
    "ScoreItem",
    "ScoredToken",
    "ServedVersion",
    "Stream",
    "TokenLogprob",
    "TopToken",
    "Unavailable",
    "Upload",
    "UploadConflict",
    "UploadCorrupt",
    "UploadNotFound",
    "UploadOutOfRange",
    "UploadStatus",
    "Usage",
    "Watch",
]
