"""Settings of a server, from four places: command line > POLYGRAFT_* > file > default.

Resolved once, where the process starts. An unknown key is refused with the nearest known one. A
variable names a setting in capitals, its sections joined by two underscores:
`POLYGRAFT_PORT=50052`, `POLYGRAFT_ENGINE__DTYPE=float32`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.limits import GIB, MIB, AdapterLimits
from polygraft.adapters.stores.protocol import is_url
from polygraft.server.canary_watch import CanaryConfig
from polygraft.server.engine.config import EngineConfig

ENVIRONMENT_PREFIX = "POLYGRAFT_"


class ConfigError(InvalidRequest):
    """A setting is unknown or out of range; `item` names it, `file` where it stands."""

    reason = "INVALID_CONFIG"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterConfig(_Section):
    """How large adapters may be and where they are kept."""

    max_rank: int = Field(256, gt=0, description="Largest rank of a LoRA.")
    max_virtual_tokens: int = Field(1024, gt=0, description="Longest soft prompt.")
    max_bytes: int = Field(2 * GIB, gt=0, description="Size of one adapter's files together.")
    max_uploads: int = Field(16, gt=0, description="Uploads in progress at once.")
    max_namespace_uploads: int = Field(4, gt=0, description="Of those, of one namespace.")
    max_staged_bytes: int = Field(
        32 * GIB, gt=0, description="Bytes that all unfinished uploads together may declare."
    )
    max_namespace_staged_bytes: int = Field(
        8 * GIB, gt=0, description="Of those, by uploads of one namespace."
    )
    upload_idle_seconds: int = Field(
        3600, gt=0, description="Seconds until an upload that nobody goes on with is dropped."
    )
    host_bytes: int = Field(GIB, gt=0, description="Memory for adapters beside the device.")
    self_test_timeout: float = Field(
        120.0, gt=0, description="Seconds that the test of an upload may take, waiting included."
    )
    namespace_pin_share: float = Field(
        0.5, gt=0, le=0.5, description="Part of the device's rows that one namespace may pin."
    )
    rollback_keep: float = Field(
        3600.0, ge=0, description="Seconds that what an alias left goes last from host memory."
    )
    max_watches: int = Field(64, gt=0, description="Callers that watch events at once.")
    max_caller_watches: int = Field(16, gt=0, description="Of those, from one address.")
    load_workers: int = Field(2, gt=0, le=64, description="Threads that read adapters.")

    def limits(self) -> AdapterLimits:
        """What the reader and the upload check."""
        return AdapterLimits(
            max_rank=self.max_rank,
            max_virtual_tokens=self.max_virtual_tokens,
            max_bytes=self.max_bytes,
            max_uploads=self.max_uploads,
            max_namespace_uploads=self.max_namespace_uploads,
            max_staged_bytes=self.max_staged_bytes,
            max_namespace_staged_bytes=self.max_namespace_staged_bytes,
            upload_idle_seconds=self.upload_idle_seconds,
        )


class StorageConfig(_Section):
    """How a server uses the store, alone or with others."""

    local_dir: Path | None = Field(
        None,
        description="Directory on this machine for uploads under way and copies of a remote "
        "store, this server's alone; by default the store's own, for a URL .polygraft.",
    )
    cache_bytes: int = Field(10 * GIB, gt=0, description="Disk for copies of a remote store.")
    timeout: float = Field(30.0, gt=0, description="Seconds for one request to a remote store.")
    poll_seconds: float = Field(
        0.5, gt=0, le=60, description="Between two looks at what other servers have written."
    )
    refresh_seconds: float = Field(
        600.0, gt=0, description="Between two comparisons of all names with the store."
    )
    collect_hours: float = Field(
        0.0, ge=0, description="Between two garbage collections; 0: none. On one server of a store."
    )


class ServerConfig(_Section):
    """Everything that `polygraft serve` can be told."""

    model: str = Field(
        "builtin:nano", description="Base model: a directory, a hub id or builtin:nano."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0: any free one.")
    metrics_host: str = Field("127.0.0.1", description="Address of the Prometheus page.")
    metrics_port: int = Field(9090, ge=0, le=65535, description="Prometheus port; 0: any free one.")
    store: Annotated[str, BeforeValidator(str)] = Field(
        ".polygraft",
        description="Where adapters are kept: a directory, s3://bucket/prefix, gs:// or az://.",
    )
    drain_delay: float = Field(
        0.0, ge=0, description="Seconds to go on after health says NOT_SERVING, for balancers."
    )
    drain_timeout: float = Field(
        45.0, ge=0, description="Seconds that running requests have to end at shutdown."
    )
    stall_timeout: float = Field(
        30.0, gt=0, description="Seconds that a stream waits for its reader, an upload for data."
    )
    stuck_after: float = Field(
        30.0, gt=0, description="Seconds without a step, though there is work, until unhealthy."
    )
    check_seconds: float = Field(
        60.0, gt=0, description="Between two looks for leaks, while nothing runs."
    )
    max_message_bytes: int = Field(
        4 * MIB, ge=2 * MIB, le=64 * MIB, description="Largest gRPC message."
    )
    engine: EngineConfig = Field(default_factory=EngineConfig, description="The engine.")
    adapters: AdapterConfig = Field(default_factory=AdapterConfig, description="Adapters.")
    canary: CanaryConfig = Field(default_factory=CanaryConfig, description="The watchdog.")
    storage: StorageConfig = Field(default_factory=StorageConfig, description="The store.")

    @property
    def local_directory(self) -> Path:
        """The directory on this machine that is this server's alone."""
        if self.storage.local_dir is not None:
            return self.storage.local_dir
        return Path(".polygraft" if is_url(self.store) else self.store)


def load_config(
    overrides: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> ServerConfig:
    """The settings in effect; `overrides` are dotted keys such as `engine.dtype`.

    Raises ConfigError.
    """
    settings = _read_file(file) if file else {}
    _check_keys(settings, str(file))
    for key, value in _read_environment(environment):
        _put(settings, key.split("."), value)
    for key, value in overrides.items():
        _put(settings, key.split("."), value)
    _check_keys(settings, None)
    try:
        return ServerConfig.model_validate(settings)
    except ValidationError as error:
        raise _refusal(error) from error


def known_keys(section: type[BaseModel] = ServerConfig, place: str = "") -> Iterator[str]:
    """The dotted key of every setting."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_keys(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def _read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}.", file=str(file)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text.", file=str(file)) from error
    try:
        read = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"is not valid {file.suffix[1:]}: {error}", file=str(file)) from error
    if not isinstance(read or {}, dict):
        raise ConfigError("must be a mapping of settings.", file=str(file))
    return read or {}


def _read_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Settings among the variables. Other programs' POLYGRAFT_* are let be, misspellings not."""
    keys = {_variable(key): key for key in known_keys()}
    for name, value in environment.items():
        if name in keys:
            yield keys[name], value
        elif name.startswith(ENVIRONMENT_PREFIX):
            near = difflib.get_close_matches(name, keys, n=1, cutoff=0.85)
            if near:
                raise ConfigError("is not a setting.", item=name, hint=f"Did you mean {near[0]}?")


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")


def _put(settings: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise ConfigError("is a section, not a value.", item=part, found=settings)
    settings[path[-1]] = value


def _check_keys(settings: Mapping[str, Any], file: str | None) -> None:
    known = list(known_keys())
    sections = {key.rpartition(".")[0] for key in known} - {""}
    for key in _dotted(settings, sections):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
            raise ConfigError("is not a setting.", file=file, item=key, hint=hint)


def _dotted(settings: Mapping[str, Any], sections: set[str], place: str = "") -> Iterator[str]:
    for name, value in settings.items():
        key = f"{place}{name}"
        if key in sections and isinstance(value, Mapping):
            yield from _dotted(value, sections, f"{key}.")
        elif key not in sections:
            yield key


def _refusal(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    return ConfigError(
        f"{first['msg']}.",
        item=".".join(str(part) for part in first["loc"]),
        found=first["input"],
        hint=f"It is {first['input']!r} now.",
    )
