# SPDX-License-Identifier: Apache-2.0
"""What `kt bench` measures, on a fake engine whose times are known."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kt_server.bench.client import BenchClient, Record
from kt_server.bench.engine_times import DecodeTimes, EngineTimes
from kt_server.bench.modes import Bench, Result, Settings
from kt_server.bench.prompts import PromptMaker
from kt_server.bench.summary import Goal, Spread, percentile, summarize

from .conftest import MODEL
from .fake_engine import FakeEngine


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def url_of(client: TestClient) -> str:
    return str(client.make_url("/")).rstrip("/")


async def results_of(
    client: TestClient, session: aiohttp.ClientSession, mode: Any, **settings: Any
) -> list[Result]:
    url = url_of(client)
    bench = Bench(BenchClient(session, url, MODEL), EngineTimes(session, url), Settings(**settings))
    return [result async for result in bench.run(mode)]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_a_record_has_the_server_s_times_and_counts(
    client: TestClient, session: aiohttp.ClientSession, engine: FakeEngine, endpoint: Any
) -> None:
    engine.first_token_s, engine.token_s, engine.cached_tokens = 0.08, 0.02, 3
    engine.answer = "x" * 50
    record = await BenchClient(session, url_of(client), MODEL, endpoint).ask("abcd", 6)
    assert record.error is None
    assert record.prompt_tokens == (4 if endpoint == "completions" else 6)
    assert (record.cached_tokens, record.output_tokens) == (3, 6)
    assert len(record.arrivals) == 6
    assert record.ttft >= 0.08
    assert min(record.itl) >= 0.01
    assert record.tpot == pytest.approx(sum(record.itl) / 5)
    assert record.latency <= record.ended - record.sent
    asked = engine.requests[0].sampling
    assert (asked.max_tokens, asked.temperature, asked.ignore_eos) == (6, 0, True)


async def test_tokens_are_counted_by_usage_not_by_events(
    client: TestClient, session: aiohttp.ClientSession, engine: FakeEngine
) -> None:
    engine.answer = "東京"
    record = await BenchClient(session, url_of(client), MODEL).ask("a", 6)
    assert (len(record.arrivals), record.output_tokens) == (2, 6)
    assert record.tpot == pytest.approx(record.itl[0] / 5)


async def stream_of(lines: list[str]) -> TestServer:
    """A server that answers everything with these events."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="".join(f"data: {line}\n\n" for line in lines))

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    server = TestServer(app)
    await server.start_server()
    return server


TEXT = '{"choices": [{"text": "a"}]}'
USAGE = '{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([TEXT, USAGE, "[DONE]"], None),
        (['{"choices": [{"text": "", "finish_reason": null}]}', USAGE, "[DONE]"], None),
        (
            ['{"choices": [{"text": "", "finish_reason": "length"}]}', USAGE, "[DONE]"],
            "the stream had no token",
        ),
        ([TEXT, "[DONE]"], "the stream had no usage"),
        ([USAGE, "[DONE]"], "the stream had no token"),
        ([TEXT, USAGE], r"the stream ended without \[DONE\]"),
        ([TEXT, '{"error": {"message": "broken"}}', "[DONE]"], "error event: .*broken"),
        ([TEXT, "{"], "DecodeError"),
    ],
)
async def test_only_a_whole_answer_is_one(
    session: aiohttp.ClientSession, lines: list[str], error: str | None
) -> None:
    server = await stream_of(lines)
    record = await BenchClient(session, str(server.make_url("/")).rstrip("/"), MODEL).ask("a", 1)
    await server.close()
    if error is None:
        assert record.error is None
    else:
        assert re.search(error, record.error or "")


async def test_a_server_that_is_not_there_is_a_failure(session: aiohttp.ClientSession) -> None:
    record = await BenchClient(session, "http://127.0.0.1:9", MODEL).ask("a", 1)
    assert "127.0.0.1:9" in (record.error or "")
    with pytest.raises(RuntimeError, match=r"\[bench\] the server must answer; got .*127.0.0.1"):
        await PromptMaker(0).calibrate(BenchClient(session, "http://127.0.0.1:9", MODEL), 5)


async def test_prompts_have_the_length_that_was_asked_for(
    client: TestClient, session: aiohttp.ClientSession
) -> None:
    """One token per byte: a word is some six tokens."""
    bench_client = BenchClient(session, url_of(client), MODEL)
    prompts = PromptMaker(3)
    await prompts.calibrate(bench_client, 200)
    record = await bench_client.ask(prompts.prompt(200), 1)
    assert 170 <= record.prompt_tokens <= 230
    assert PromptMaker(3).prompt(9) == PromptMaker(3).prompt(9) != PromptMaker(4).prompt(9)


async def test_concurrency_runs_each_number_of_streams(
    client: TestClient, session: aiohttp.ClientSession, engine: FakeEngine
) -> None:
    engine.answer = "x" * 50
    engine.token_s = 0.02
    results = await results_of(
        client,
        session,
        "concurrency",
        input_tokens=20,
        output_tokens=5,
        num_requests=4,
        concurrency=(1, 4, 6),
    )
    summaries = [result.summary for result in results]
    assert [(s.concurrency, s.num_requests, s.num_failed) for s in summaries] == [
        (1, 4, 0),
        (4, 4, 0),
        (6, 6, 0),
    ]
    assert [s.output_tokens for s in summaries] == [20, 20, 30]
    assert summaries[1].output_tokens_per_s > 1.5 * summaries[0].output_tokens_per_s
    prompts = [r.prompt_token_ids[:12] for r in engine.requests if len(r.prompt_token_ids) > 12]
    assert len(prompts) >= 14
    assert len(set(prompts)) == len(prompts)
    for result in results:
        flights = [(r.sent, 1) for r in result.records] + [(r.ended, -1) for r in result.records]
        most = np.cumsum([change for _, change in sorted(flights)]).max()
        assert most == result.summary.concurrency


async def test_latency_is_one_stream_with_the_engine_s_own_account(
    client: TestClient, session: aiohttp.ClientSession
) -> None:
    (result,) = await results_of(
        client, session, "latency", input_tokens=9, output_tokens=3, num_requests=2
    )
    assert result.summary.concurrency == 1
    assert result.decode == DecodeTimes(6, 3.0, 2.25)
    assert result.decode.share_outside == 0.25


async def test_throughput_takes_the_largest_concurrency(
    client: TestClient, session: aiohttp.ClientSession
) -> None:
    (result,) = await results_of(
        client, session, "throughput", input_tokens=9, concurrency=(1, 3), num_requests=1
    )
    assert (result.summary.concurrency, result.summary.num_requests) == (3, 3)


async def test_prefix_shares_the_beginning(
    client: TestClient, session: aiohttp.ClientSession, engine: FakeEngine
) -> None:
    engine.cached_tokens = 7
    cold, warm = await results_of(client, session, "prefix", input_tokens=160, num_requests=4)
    assert (cold.summary.name, warm.summary.name) == ("prefix cold", "prefix warm")
    assert (cold.summary.num_requests, warm.summary.num_requests) == (1, 3)
    assert warm.summary.cached_tokens == 21
    prompts = [request.prompt_token_ids for request in engine.requests[-4:]]
    assert len({prompt[:120] for prompt in prompts}) == 1
    assert len(set(prompts)) == 4


async def test_failures_are_counted_and_left_out_of_the_times(
    client: TestClient, session: aiohttp.ClientSession, engine: FakeEngine
) -> None:
    engine.answer = lambda request: "x" * 9
    prompts = PromptMaker(0)
    bench_client = BenchClient(session, url_of(client), MODEL)
    good = [await bench_client.ask(prompts.prompt(5), 4) for _ in range(2)]
    engine.fail_at = 3
    bad = [await bench_client.ask(prompts.prompt(5), 4) for _ in range(3)]
    summary = summarize("x", 1, [*good, *bad], Goal())
    assert (summary.num_requests, summary.num_failed) == (5, 3)
    assert list(summary.errors.values()) == [3]
    assert "kernel fell over" in next(iter(summary.errors))
    assert summary.output_tokens == 8
    none = summarize("x", 1, bad, Goal())
    assert (none.num_failed, none.output_tokens_per_s, none.ttft) == (3, 0, Spread(0, 0, 0))


def test_rates_and_goodput_by_hand() -> None:
    fast = Record(0.0, [0.1, 0.2, 0.3], 0.3, prompt_tokens=10, output_tokens=3)
    slow = Record(0.5, [1.5, 2.0, 2.5], 2.5, prompt_tokens=10, output_tokens=6)
    summary = summarize("x", 2, [fast, slow], Goal(ttft_ms=500))
    assert summary.duration_s == 2.5
    assert summary.output_tokens_per_s == pytest.approx(9 / 2.5)
    assert summary.total_tokens_per_s == pytest.approx(29 / 2.5)
    assert summary.goodput_per_s == pytest.approx(1 / 2.5)
    assert summary.ttft.mean == pytest.approx(550)
    assert summary.tpot.mean == pytest.approx(1e3 * (0.1 + 0.2) / 2)
    assert summary.latency.p50 == pytest.approx(1150)
    assert Goal(tpot_ms=150).met(fast)
    assert not Goal(tpot_ms=150).met(slow)
    assert Record(0.0, [0.1], 0.1, output_tokens=1).tpot is None


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpy_s(count: int) -> None:
    values = np.random.default_rng(count).random(count).tolist()
    for share in (0.0, 0.5, 0.99, 1.0):
        assert percentile(values, share) == pytest.approx(np.quantile(values, share))


async def test_a_server_without_our_metrics_gives_no_account(
    session: aiohttp.ClientSession,
) -> None:
    server = await stream_of([])
    assert await EngineTimes(session, str(server.make_url("/")).rstrip("/")).read() is None
    await server.close()
