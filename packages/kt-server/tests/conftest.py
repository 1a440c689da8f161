# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test of this package shares: a fake engine behind a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from kt_server.app import create_app
from kt_server.served import ServerConfig

from .fake_engine import TEMPLATE, TOKENIZER, FakeEngine

MODEL = "fake-model"
Connect = Callable[..., Awaitable[TestClient]]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def connect(engine: FakeEngine) -> AsyncIterator[Connect]:
    """Starts a server with given settings; returns a client of it."""
    clients: list[TestClient] = []

    async def start(template: Any = TEMPLATE, **settings: Any) -> TestClient:
        app = create_app(engine, TOKENIZER, template, MODEL, ServerConfig(**settings))
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
async def client(connect: Connect) -> TestClient:
    return await connect()


def chat_body(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def completion_body(prompt: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **fields}


async def events(response: ClientResponse) -> list[dict[str, Any]]:
    """The JSON of every event of a stream; it must end with [DONE]."""
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    blocks = (await response.text()).split("\n\n")
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert blocks[-1] == ""
    return [msgspec.json.decode(item) for item in data[:-1]]


async def error_of(response: ClientResponse, status: int) -> dict[str, Any]:
    """The error object, after checking that it has OpenAI's shape."""
    body = await response.json()
    assert response.status == status, body
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in body["error"]["message"]
    return body["error"]


async def eventually(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Whether `condition` comes true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True
