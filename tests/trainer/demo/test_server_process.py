"""Starting and stopping the demo's server, and reading its metrics."""

from pathlib import Path

import pytest

from polygraft.trainer.demo.prometheus import mean, scrape, total
from polygraft.trainer.demo.server_process import ServerProcess
from polygraft.trainer.errors import TrainerError


def test_a_server_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = ServerProcess(
        base=str(tmp_path / "nothing"), store=tmp_path / "s", log=tmp_path / "log", threads=1
    )
    with (
        process,
        pytest.raises(TrainerError, match="did not start") as caught,
    ):
        process.wait_ready(60)
    assert str(tmp_path / "nothing") in str(caught.value)
    assert process.stop() != 0


def test_a_server_tells_its_addresses_and_stops_cleanly(tiny_base: Path, tmp_path: Path) -> None:
    with ServerProcess(
        base=str(tiny_base), store=tmp_path / "s", log=tmp_path / "log", threads=1
    ) as process:
        addresses = process.wait_ready(120)
        series = scrape(addresses.metrics)
        assert total(series, "polygraft_build_info") == 1
        assert total(series, "polygraft_answers_total", adapter_kind="lora") == 0
        assert mean(series, "polygraft_time_to_first_token_seconds") == 0
        assert process.stop() == 0
