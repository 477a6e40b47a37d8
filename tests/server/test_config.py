"""Settings: four places in their order, bounds, and misspelt keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from polygraft.server.config import ConfigError, ServerConfig, known_keys, load_config


def test_the_command_line_beats_variables_beat_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "port: 1\nmetrics_port: 1\nhost: file\nengine: {max_running: 1, max_chunk: 7}\n"
    )
    environment = {
        "POLYGRAFT_PORT": "2",
        "POLYGRAFT_METRICS_PORT": "2",
        "POLYGRAFT_ENGINE__MAX_RUNNING": "2",
    }
    config = load_config({"port": 3, "engine.dtype": "float32"}, environment, file)
    assert (config.port, config.metrics_port, config.host) == (3, 2, "file")
    assert (config.engine.max_running, config.engine.max_chunk) == (2, 7)
    assert config.engine.dtype == "float32"
    assert config.drain_timeout == 45.0


def test_toml_says_the_same_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nmodel = "x"\n[engine]\nmax_running = 5\n[adapters]\nmax_rank = 8\n')
    config = load_config({}, {}, file)
    assert (config.port, config.model) == (1, "x")
    assert (config.engine.max_running, config.adapters.max_rank) == (5, 8)


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("prot: 1", "prot", "port"),
        ("engine: {max_runing: 1}", "engine.max_runing", "engine.max_running"),
        ("adapters: {maxrank: 1}", "adapters.maxrank", "adapters.max_rank"),
        ("max_running: 1", "max_running", "engine.max_running"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config({}, {}, file)
    assert caught.value.item == key
    assert caught.value.hint == f"Did you mean {near}?"
    assert str(file) in str(caught.value)


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not() -> None:
    with pytest.raises(ConfigError, match="POLYGRAFT_METRICS_PORT"):
        load_config({}, {"POLYGRAFT_METRIC_PORT": "1"})
    load_config({}, {"POLYGRAFT_SERVER": "x", "POLYGRAFT_FAILPOINTS": "", "PORT": "x"})


@pytest.mark.parametrize(
    ("overrides", "item"),
    [
        ({"port": 65536}, "port"),
        ({"port": "many"}, "port"),
        ({"engine.max_running": 0}, "engine.max_running"),
        ({"engine.dtype": "int8"}, "engine.dtype"),
        ({"engine.device": "tpu"}, "engine.device"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"max_message_bytes": 1000}, "max_message_bytes"),
    ],
)
def test_a_value_out_of_range_names_its_setting(overrides: dict[str, object], item: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, {})
    assert caught.value.item == item


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "{a: [", "a: b: c"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config({}, {}, file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config({}, {}, tmp_path / "none.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("# nothing\n")
    assert load_config({}, {}, file) == ServerConfig()


def test_every_setting_has_a_description_and_none_can_be_changed_later() -> None:
    for name, field in ServerConfig.model_fields.items():
        assert field.description, name
    assert "engine.block_size" in set(known_keys())
    with pytest.raises(ValidationError):
        ServerConfig().port = 1  # type: ignore[misc]


def test_the_settings_survive_a_round_trip_through_a_file(tmp_path: Path) -> None:
    config = ServerConfig(port=7)
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config({}, {}, file) == config


def test_weights_are_read_from_text_and_from_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("engine: {adapter_weights: {team/a: 2, b: 0.5}}")
    config = load_config({}, {"POLYGRAFT_ENGINE__NAMESPACE_WEIGHTS": "team=3, other = 1.5"}, file)
    assert config.engine.adapter_weights == {"team/a": 2.0, "b": 0.5}
    assert config.engine.namespace_weights == {"team": 3.0, "other": 1.5}
    for wrong in ("team", "team=0", "team=inf", "team=x"):
        with pytest.raises(ConfigError, match="namespace_weights"):
            load_config({"engine.namespace_weights": wrong}, {})
