# SPDX-License-Identifier: Apache-2.0
"""run_server: listens, says where, and stops cleanly on signals. The engine is a fake."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kt_server.app import create_app
from kt_server.cli.serve import check_address, log_level, weight_format_line
from kt_server.run_server import run_server
from kt_server.served import ServerConfig

from .conftest import MODEL, chat_body, eventually
from .fake_engine import TEMPLATE, TOKENIZER, FakeEngine

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def running(
    engine: FakeEngine, drain_s: float = 5.0
) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.Task[None]]]:
    app = create_app(engine, TOKENIZER, TEMPLATE, MODEL, ServerConfig(drain_s=drain_s))
    urls: list[str] = []
    server = asyncio.create_task(run_server(app, "127.0.0.1", 0, urls.append))
    assert await eventually(lambda: bool(urls) or server.done(), seconds=10)
    try:
        async with aiohttp.ClientSession(urls[0]) as session:
            yield session, server
    finally:
        if not server.done():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            await server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_server_and_the_engine(
    engine: FakeEngine, number: signal.Signals
) -> None:
    async with running(engine) as (session, server):
        assert (await session.get("/health")).status == 200
        os.kill(os.getpid(), number)
        await asyncio.wait_for(server, 5)
    assert engine.closed_reason == "the server is shutting down"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_requests_in_flight_finish_and_new_ones_are_refused(engine: FakeEngine) -> None:
    engine.token_s = 0.05
    engine.answer = "x" * 10
    async with running(engine) as (session, server):
        stream = await session.post(CHAT, json=chat_body(stream=True))
        waiting = await session.get("/health")  # keeps a second connection open
        await waiting.read()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert (await session.post(CHAT, json=chat_body())).status == 503
        text = await stream.text()
        await asyncio.wait_for(server, 5)
    assert text.count('"content":"x"') == 10
    assert text.endswith("data: [DONE]\n\n")
    assert engine.finished == {"stop": 1}


async def test_requests_that_take_too_long_are_ended_with_an_error_event(
    engine: FakeEngine,
) -> None:
    engine.token_s = 0.05
    engine.answer = "x" * 400
    async with running(engine, drain_s=0.1) as (session, server):
        stream = await session.post(CHAT, json=chat_body(stream=True))
        os.kill(os.getpid(), signal.SIGTERM)
        text = await stream.text()
        await asyncio.wait_for(server, 5)
    assert '"engine_closed"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert engine.stats().num_running == 0


async def test_a_second_signal_ends_the_waiting(engine: FakeEngine) -> None:
    engine.token_s = 0.05
    engine.answer = "x" * 400
    async with running(engine, drain_s=60) as (session, server):
        stream = await session.post(CHAT, json=chat_body(stream=True))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert not server.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(server, 5)
        assert "engine_closed" in await stream.text()


async def test_a_port_in_use_is_an_error_and_closes_the_engine(engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = create_app(engine, TOKENIZER, TEMPLATE, MODEL)
        with pytest.raises(OSError, match="address already in use"):
            await run_server(app, "127.0.0.1", taken.getsockname()[1], lambda url: None)
    assert engine.closed_reason is not None


def test_an_address_is_checked_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1 port {port}"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", 0)
    with pytest.raises(OSError):
        check_address("no-such-host.invalid", 0)


def test_the_weight_format_is_told_as_asked_for_and_as_packed(engine: FakeEngine) -> None:
    assert weight_format_line(engine.stats()) == "native (experts bf16, linear float32)"


def test_the_log_level_comes_from_kt_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KT_LOG", raising=False)
    assert log_level() == "INFO"
    monkeypatch.setenv("KT_LOG", "warning")
    assert log_level() == "WARNING"
    monkeypatch.setenv("KT_LOG", "loud")
    with pytest.raises(ValueError, match=r"KT_LOG must be one of .*; got 'loud'"):
        log_level()
