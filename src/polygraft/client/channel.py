"""How both clients talk to a server: channel options and default times."""

from __future__ import annotations

DEFAULT_ADDRESS = "127.0.0.1:50051"
UNARY_SECONDS = 60.0
STREAM_SECONDS = 600.0
UPLOAD_SECONDS = 600.0

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Why: gRPC's own retries would also repeat a stream whose first token was seen; see retry.py.
    ("grpc.enable_retries", 0),
)
