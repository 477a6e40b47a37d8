"""An engine with just enough around it to try an adapter: no store, no service, no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polygraft.adapters.residency import Residency
from polygraft.adapters.weights import AdapterWeights, read_adapter
from polygraft.server.config import ServerConfig
from polygraft.server.engine.engine import Engine
from polygraft.server.self_test import SelfTest


@contextmanager
def trial_engine(config: ServerConfig) -> Iterator[tuple[Engine, SelfTest]]:
    """The engine that a server with these settings would run, and the test that it runs uploads
    through, for as long as the block does. Raises what `Engine.load` raises."""
    engine = Engine.load(config.model, config.engine)

    def read(digest: str) -> AdapterWeights:
        files = self_test.files(digest)
        assert files is not None, "only what is under test is read"
        return read_adapter(
            files,
            engine.geometry,
            config.adapters.limits(),
            dtype=engine.base.dtype,
            allow_no_effect=True,  # whether that is wanted has been decided
        )

    residency = Residency(
        read,
        engine.bank,
        host_bytes=config.adapters.host_bytes,
        workers=1,
        on_change=engine.wake,
    )
    self_test = SelfTest(
        engine,
        residency,
        timeout=config.adapters.self_test_timeout,
        is_exact=config.engine.weight_format != "int8",
    )
    try:
        engine.start(residency, self_test.deliver)
        try:
            yield engine, self_test
        finally:
            engine.stop()
    finally:
        residency.close()
