# SPDX-License-Identifier: Apache-2.0
"""Streams: keep-alive, errors in the middle, clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import msgspec
import pytest
from aiohttp.test_utils import TestClient

from .conftest import Connect, chat_body, completion_body, eventually
from .fake_engine import FakeEngine

CHAT = "/v1/chat/completions"


async def test_events_come_one_by_one_as_they_are_made(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.token_s = 0.05
    response = await client.post(CHAT, json=chat_body(stream=True))
    await response.content.readuntil(b"\n\n")
    assert engine.stats().generated_tokens <= 2
    assert response.headers["Cache-Control"] == "no-cache"


async def test_silence_is_filled_with_comments(connect: Connect, engine: FakeEngine) -> None:
    client = await connect(keepalive_s=0.03)
    engine.first_token_s = 0.2
    engine.answer = "ab"
    response = await client.post(CHAT, json=chat_body(stream=True))
    blocks = (await response.text()).split("\n\n")
    comments = [block for block in blocks if block == ": keep-alive"]
    assert len(comments) >= 2
    assert blocks[0] == ": keep-alive"  # headers do not wait for the first token either
    assert blocks[-2:] == ["data: [DONE]", ""]


async def test_a_busy_stream_has_no_comments(connect: Connect, engine: FakeEngine) -> None:
    client = await connect(keepalive_s=0.2)
    engine.token_s = 0.02
    engine.answer = "x" * 30
    response = await client.post(CHAT, json=chat_body(stream=True))
    assert ": keep-alive" not in await response.text()


@pytest.mark.parametrize("url", [CHAT, "/v1/completions"])
async def test_an_error_in_the_middle_is_an_event(
    client: TestClient, engine: FakeEngine, url: str
) -> None:
    engine.fail_at = 4
    body = chat_body(stream=True) if url == CHAT else completion_body(stream=True)
    response = await client.post(url, json=body)
    assert response.status == 200
    blocks = (await response.text()).split("\n\n")
    error = msgspec.json.decode(blocks[-3].removeprefix("data: "))
    assert error["error"]["message"] == "kernel fell over"
    assert error["error"]["code"] == "generation_failed"
    assert blocks[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_frees_its_pages(
    client: TestClient, engine: FakeEngine, stream: bool, reset: bool
) -> None:
    """A real socket, closed or reset while the answer is made."""
    engine.token_s = 0.02
    engine.answer = "x" * 400
    body = json.dumps(chat_body(stream=stream)).encode()
    assert client.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    if stream:
        await reader.readuntil(b"data: ")
    assert await eventually(lambda: engine.stats().generated_tokens > 3)
    assert engine.stats().pages_used > 0
    if reset:
        linger_zero = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
    writer.close()
    assert await eventually(lambda: engine.stats().num_running == 0)
    assert engine.stats().pages_used == 0
    assert engine.finished == {"abort": 1}
    assert engine.stats().generated_tokens < 100
    assert (await client.post(CHAT, json=chat_body(max_tokens=1))).status == 200
    metrics = await (await client.get("/metrics")).text()
    assert f'kt_http_requests_total{{endpoint="{CHAT}",status="' in metrics


async def test_a_client_that_leaves_before_the_first_token(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.first_token_s = 30
    request = asyncio.create_task(client.post(CHAT, json=chat_body(stream=True)))
    assert await eventually(lambda: engine.stats().num_running == 1)
    request.cancel()
    assert await eventually(lambda: engine.stats().num_running == 0)
    assert engine.finished == {"abort": 1}


async def test_leaving_ends_every_prompt_of_a_request(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.first_token_s = 30
    body = completion_body(["a", "b", "c"])
    request = asyncio.create_task(client.post("/v1/completions", json=body))
    assert await eventually(lambda: engine.stats().num_running == 3)
    request.cancel()
    assert await eventually(lambda: engine.stats().num_running == 0)
    assert engine.finished == {"abort": 3}
