# SPDX-License-Identifier: Apache-2.0
"""/metrics: the server's counts and the engine's, in a format Prometheus reads."""

from __future__ import annotations

from aiohttp.test_utils import TestClient
from prometheus_client.parser import text_string_to_metric_families

from .conftest import chat_body
from .fake_engine import NUM_PAGES, FakeEngine

CHAT = "/v1/chat/completions"


async def scrape(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.content_type == "text/plain"
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(await response.text())
        for sample in family.samples
    }


async def test_metrics_count_what_happened(client: TestClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 2
    assert (await client.post(CHAT, json=chat_body())).status == 200
    assert (await client.post(CHAT, json=chat_body(stream=True))).status == 200
    assert (await client.post(CHAT, data=b"{")).status == 400
    assert (await client.get("/nowhere/at/all")).status == 404
    metrics = await scrape(client)
    assert metrics["kt_http_requests_total", (CHAT, "200")] == 2
    assert metrics["kt_http_requests_total", (CHAT, "400")] == 1
    assert metrics["kt_http_requests_total", ("unknown", "404")] == 1
    assert metrics["kt_generation_tokens_total", ()] == 14
    assert metrics["kt_engine_phase_steps_total", ("decode",)] == 14
    assert metrics["kt_engine_step_seconds_total", ("decode",)] == 7.0
    assert metrics["kt_engine_forward_seconds_total", ("decode",)] == 5.25
    assert metrics["kt_engine_forward_seconds_total", ("prefill",)] == 0.0
    assert metrics["kt_prompt_tokens_cached_total", ()] == 4
    assert metrics["kt_time_to_first_token_seconds_count", ()] == 2
    assert metrics["kt_inter_token_latency_seconds_count", ()] == 12
    assert metrics["kt_request_finished_total", ("stop",)] == 2
    assert metrics["kt_num_requests_running", ()] == 0
    pages = [metrics["kt_kv_pages", (state,)] for state in ("free", "cached", "used")]
    assert pages == [NUM_PAGES - 1, 1, 0]
    assert metrics["kt_num_preemptions_total", ()] == 2
    assert metrics["kt_max_inter_token_latency_seconds", ()] == 0.1
    buckets = [metrics["kt_prefill_chunk_tokens_bucket", (le,)] for le in ("8.0", "64.0", "+Inf")]
    assert buckets == [2, 3, 3]
    assert metrics["kt_prefill_chunk_tokens_count", ()] == 3
    assert metrics["kt_prefill_chunk_tokens_sum", ()] == 70
    assert metrics["kt_kernel_ops_total", ("attention",)] == 3
    assert metrics["kt_engine_steps_total", ()] == 14
    assert metrics["kt_prefix_store_hit_pages_total", ("memory",)] == 5
    assert metrics["kt_prefix_store_hit_pages_total", ("disk",)] == 4
    assert metrics["kt_prefix_store_io_errors_total", ("disk",)] == 0
    assert ("kt_prefix_store_io_errors_total", ("memory",)) not in metrics
    assert metrics["kt_prefix_store_allocated_bytes", ("disk",)] == 8192
    lost = {
        reason: metrics["kt_prefix_store_lost_pages_total", (reason, "disk")]
        for reason in ("room", "quota", "age")
    }
    assert lost == {"room": 7, "quota": 2, "age": 3}
    assert metrics["kt_prefill_seconds_saved_total", ()] == 1.5
    assert metrics["kt_num_requests_loading", ()] == 0
    (info,) = [labels for name, labels in metrics if name == "kt_build_info"]
    assert {"fake", "none", "native", "bf16"} <= set(info)


async def test_running_requests_show(client: TestClient, engine: FakeEngine) -> None:
    engine.first_token_s = 0.3
    async with client.post(CHAT, json=chat_body(stream=True, max_tokens=1)) as _:
        pass
    engine.token_s = 0.05
    async with client.post(CHAT, json=chat_body(stream=True)) as response:
        metrics = await scrape(client)
        assert metrics["kt_num_requests_running", ()] == 1
        assert 0 < metrics["kt_kv_cache_usage_perc", ()] < 1
        await response.read()


async def test_two_servers_do_not_share_counts(connect, engine: FakeEngine) -> None:
    one, two = await connect(), await connect()
    await one.post(CHAT, json=chat_body())
    assert ("kt_http_requests_total", (CHAT, "200")) in await scrape(one)
    assert ("kt_http_requests_total", (CHAT, "200")) not in await scrape(two)
