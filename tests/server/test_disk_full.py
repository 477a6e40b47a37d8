"""A disk that is full or fails: uploads and moves say so, answers go on, no restart is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_support.directories import lora_config, write_adapter
from server_support.service import Service

from polygraft.adapters.errors import Overloaded, PolygraftError, Unavailable
from polygraft.adapters.failpoints import activate


@pytest.fixture(autouse=True)
def _healthy_afterwards() -> Iterator[None]:
    yield
    activate(None)


@pytest.mark.parametrize(
    "point", ["upload.open", "upload.chunk", "store.open", "store.write", "store.fsync_file",
              "store.link", "store.fsync_directory"]
)  # fmt: skip
@pytest.mark.parametrize("action", ["enospc", "error"])
async def test_an_upload_to_a_disk_that_fails_says_so_and_works_when_it_is_mended(
    point: str, action: str, service: Service, tmp_path: Path
) -> None:
    record = service.publish("sum", tmp_path / "first", seed=1)
    await service.client.generate("x", adapter="sum")
    directory = write_adapter(tmp_path / "second", lora_config(lora_alpha=7))
    activate(f"{point}={action}")
    with pytest.raises(PolygraftError) as caught:
        await service.client.upload_adapter(directory, "sum", allow_unverified_base=True)
    if action == "enospc":
        assert isinstance(caught.value, Overloaded)
        assert caught.value.code == "STORAGE_FULL"
    else:
        assert isinstance(caught.value, Unavailable)
        assert caught.value.code == "STORE_UNAVAILABLE"
    assert (await service.client.generate("x", adapter="sum")).versions[0].digest == record.digest
    assert service.server.registry.num_versions("sum") == 1
    activate(None)
    uploaded = await service.client.upload_adapter(directory, "sum", allow_unverified_base=True)
    assert uploaded.version.number == 2


@pytest.mark.parametrize("point", ["store.write", "store.fsync_file", "store.link"])
async def test_a_move_on_a_full_disk_is_refused_and_changes_nothing(
    point: str, service: Service, tmp_path: Path
) -> None:
    for seed in (1, 2):
        service.publish("sum", tmp_path / str(seed), seed=seed)
    activate(f"{point}=enospc")
    with pytest.raises(Overloaded) as caught:
        await service.client.move_alias("sum", "live", 2)
    assert caught.value.code == "STORAGE_FULL"
    assert (await service.client.generate("x", adapter="sum")).versions[0].number == 1
    activate(None)
    assert (await service.client.move_alias("sum", "live", 2)).generation == 2
