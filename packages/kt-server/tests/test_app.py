# SPDX-License-Identifier: Apache-2.0
"""Health, metrics, models, request ids."""

from __future__ import annotations

import logging

import pytest
from aiohttp.test_utils import TestClient

from kt_server.served import SERVED

from .conftest import MODEL, chat_body, error_of, eventually
from .fake_engine import FakeEngine

CHAT = "/v1/chat/completions"


async def test_health(client: TestClient) -> None:
    response = await client.get("/health")
    assert (response.status, await response.json()) == (200, {"status": "ok", "model": MODEL})


async def test_health_says_why_the_engine_is_gone(client: TestClient, engine: FakeEngine) -> None:
    engine.close("the engine's thread died: boom")
    error = await error_of(await client.get("/health"), 503)
    assert error["message"] == "the engine's thread died: boom"
    await error_of(await client.post(CHAT, json=chat_body()), 503)


async def test_a_draining_server_refuses_new_requests(client: TestClient) -> None:
    client.app[SERVED].draining = True
    assert (await error_of(await client.get("/health"), 503))["code"] == "shutting_down"
    response = await client.post(CHAT, json=chat_body())
    assert (await error_of(response, 503))["code"] == "shutting_down"
    assert "Retry-After" in response.headers


async def test_models(client: TestClient) -> None:
    listed = await (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 500)
    assert await (await client.get(f"/v1/models/{MODEL}")).json() == model
    error = await error_of(await client.get("/v1/models/some/other"), 404)
    assert error["code"] == "model_not_found"


async def test_request_id_is_echoed_or_made(client: TestClient) -> None:
    url, given = "/v1/models", {"X-Request-Id": "abc-123"}
    assert (await client.get(url, headers=given)).headers["X-Request-Id"] == "abc-123"
    made = {(await client.get(url)).headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2
    too_long = {"X-Request-Id": "x" * 129}
    assert (await client.get(url, headers=too_long)).headers["X-Request-Id"].startswith("req-")
    stream = await client.post(CHAT, json=chat_body(stream=True), headers=given)
    assert stream.headers["X-Request-Id"] == "abc-123"
    failed = await client.post(CHAT, data=b"{", headers=given)
    assert failed.headers["X-Request-Id"] == "abc-123"


async def test_one_log_line_per_request(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kt_server.access")
    await client.post(CHAT, json=chat_body("my secret"), headers={"X-Request-Id": "id-1"})
    (record,) = [r for r in caplog.records if r.name == "kt_server.access"]
    assert "POST /v1/chat/completions 200" in record.getMessage()
    assert "id=id-1" in record.getMessage()
    assert "secret" not in caplog.text


async def test_in_flight_requests_are_counted(client: TestClient, engine: FakeEngine) -> None:
    engine.token_s = 0.05
    served = client.app[SERVED]
    async with client.post(CHAT, json=chat_body(stream=True)) as response:
        assert served.num_in_flight == 1
        await response.read()
    assert await eventually(lambda: served.num_in_flight == 0)
