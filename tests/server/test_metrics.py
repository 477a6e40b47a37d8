"""What Prometheus gets: checked by promtool, complete, and without labels that a client invents."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from server_support.service import Service

from polygraft.adapters.residency import Tier
from polygraft.client import PolygraftError
from polygraft.server.metrics import Metrics


def scrape(service: Service) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.server.metrics_port}/metrics") as page:
        text: str = page.read().decode()
    return text


def value(text: str, series: str) -> float:
    line = next(line for line in text.splitlines() if line.startswith(series + " "))
    return float(line.rpartition(" ")[2])


async def traffic(service: Service, folder: Path) -> None:
    """One of everything."""
    service.publish("dsum", folder)
    await service.client.generate("Hi")
    await service.client.generate("Hi", adapter="dsum", max_output_tokens=3)
    async with service.client.stream("Hi") as stream:
        await anext(stream)
    for adapter in ("nope", "another-name-that-a-client-made-up"):
        with pytest.raises(PolygraftError):
            await service.client.generate("Hi", adapter=adapter)


async def test_promtool_finds_nothing_to_complain_about(
    service: Service, tmp_path: Path, promtool: Path
) -> None:
    await traffic(service, tmp_path / "a")
    command = [str(promtool), "check", "metrics"]
    checked = subprocess.run(command, input=scrape(service), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_the_page_tells_what_happened(service: Service, tmp_path: Path) -> None:
    await traffic(service, tmp_path / "a")
    text = scrape(service)
    for series, least in (
        ('polygraft_requests_total{code="OK",method="Generate"}', 2),
        ('polygraft_requests_total{code="NOT_FOUND",method="Generate"}', 2),
        ('polygraft_errors_total{reason="ADAPTER_NOT_FOUND"}', 2),
        ('polygraft_answers_total{adapter_kind="base",finish_reason="stop"}', 1),
        ('polygraft_answers_total{adapter_kind="lora",finish_reason="length"}', 1),
        ("polygraft_prompt_tokens_total", 6),
        ("polygraft_output_tokens_total", 19 + 3),
        ("polygraft_time_to_first_token_seconds_count", 2),
        ("polygraft_inter_token_latency_seconds_count", 18 + 2),
        ("polygraft_queue_duration_seconds_count", 2),
        ('polygraft_request_duration_seconds_count{method="Generate"}', 2),
        ('polygraft_adapter_loads_total{tier="device"}', 1),
        ('polygraft_adapter_load_seconds_count{tier="host"}', 1),
        ('polygraft_adapters_resident{tier="device"}', 1),
        ("polygraft_kv_blocks", 8),
        ("polygraft_kv_blocks_used", 0),
        ("polygraft_sequences_running", 0),
        ("polygraft_sequences_waiting", 0),
        ("polygraft_sequences_loading", 0),
        ("polygraft_engine_up", 1),
    ):
        assert value(text, series) >= least, series
    assert 'polygraft_build_info{python="' in text


async def test_no_label_holds_what_a_client_sent(service: Service, tmp_path: Path) -> None:
    await traffic(service, tmp_path / "a")
    text = scrape(service)
    for secret in ("dsum", "nope", "made-up", "Hi", str(tmp_path)):
        assert secret not in text


async def test_an_unknown_method_makes_no_series(service: Service) -> None:
    import grpc

    before = len(scrape(service).splitlines())
    async with grpc.aio.insecure_channel(service.address) as opened:
        channel: Any = opened
        for index in range(5):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/polygraft.v1.GenerationService/Made{index}")(b"")
    assert len(scrape(service).splitlines()) == before


def test_loads_and_evictions_are_counted_by_tier() -> None:
    metrics = Metrics()
    metrics.loaded("sha256:x", Tier.DEVICE, 0.5)
    metrics.evicted("sha256:x", Tier.HOST)
    found = {
        (sample.name, sample.labels.get("tier")): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
    }
    assert found["polygraft_adapter_loads_total", "device"] == 1
    assert found["polygraft_adapter_evictions_total", "host"] == 1
    assert found["polygraft_adapter_load_seconds_sum", "device"] == 0.5
