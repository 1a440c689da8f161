# SPDX-License-Identifier: Apache-2.0
"""`kt bench` as a command, against a fake engine behind a real server in a thread."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from kt_server.app import create_app
from kt_server.bench.local_server import local_server
from kt_server.cli.bench import parse_concurrency
from kt_server.cli.commands import app

from .conftest import MODEL
from .fake_engine import TEMPLATE, TOKENIZER, FakeEngine

SMALL = ["--input-tokens", "20", "--output-tokens", "4", "--requests", "2"]


@pytest.fixture
def keys() -> list[str | None]:
    """What each request to the server had to show."""
    return []


@pytest.fixture
def url(engine: FakeEngine, keys: list[str | None]) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    app = create_app(engine, TOKENIZER, TEMPLATE, MODEL)

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        keys.append(request.headers.get("Authorization"))

    app.on_response_prepare.append(note)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_table_json_and_plot(url: str, tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    result = run("concurrency", "--url", f"{url}/v1/", "--concurrency", "1,2", *SMALL, *files)
    assert result.exit_code == 0, result.output
    lines = [line.strip("│").split("│") for line in result.output.splitlines() if "│" in line]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert rows["requests"] == ["2", "2"]
    assert rows["failed"] == ["0", "0"]
    assert rows["output tokens each"] == ["4", "4"]
    assert rows["outside the model"] == ["25.0 %", "25.0 %"]
    assert "1 stream " in result.output
    assert "2 streams" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["mode"], report["target"]["model"]) == ("concurrency", MODEL)
    assert report["settings"]["input_tokens"] == 20
    assert [r["concurrency"] for r in report["results"]] == [1, 2]
    assert len(report["results"][0]["requests"]) == 2
    assert len(report["results"][0]["requests"][0]["arrivals"]) == 4
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", [None, "secret"])
def test_every_request_shows_the_key(url: str, keys: list[str | None], key: str | None) -> None:
    options = [] if key is None else ["--api-key", key]
    result = run("prefix", "--url", url, "--endpoint", "chat", *SMALL, *options)
    assert result.exit_code == 0, result.output
    assert "prefix warm" in result.output
    assert set(keys) == {None if key is None else f"Bearer {key}"}
    assert len(keys) >= 5  # the model's name, calibration, warm-up, two requests


def test_failed_requests_are_shown_and_the_status_says_so(url: str, engine: FakeEngine) -> None:
    asked = []

    def answer(request: Any) -> str:
        asked.append(request)
        engine.fail_at = 2 if len(asked) > 3 else None  # calibration and warm-up pass
        return "Paris."

    engine.answer = answer
    result = run("latency", "--url", url, "--model", MODEL, *SMALL)
    assert result.exit_code == 1
    assert "failed 2 times (latency, 1): error event" in result.output
    assert "kernel fell over" in result.output


def test_a_missing_matplotlib_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, url: str, engine: FakeEngine
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it could not be found
    result = run("latency", "--url", url, "--plot", "x.png", *SMALL)
    assert "install kt-server[bench]" in str(result.exception)
    assert engine.requests == []


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    url: str, engine: FakeEngine, option: str, tmp_path: Path
) -> None:
    result = run("latency", "--url", url, option, str(tmp_path / "none" / "r"), *SMALL)
    assert f"[bench] the directory of {option} must exist" in str(result.exception)
    assert not engine.requests


def test_either_a_model_or_a_url() -> None:
    for arguments in (["latency"], ["latency", "model", "--url", "http://x"]):
        assert "either MODEL or --url" in str(run(*arguments).exception)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "1.5"])
def test_bad_concurrency_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\[bench\] concurrency must be numbers like 1,2,4; got"):
        parse_concurrency(text)
    assert parse_concurrency("1,2, 16") == (1, 2, 16)


def test_a_model_that_does_not_load_is_told_in_the_server_s_words() -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*no-such-model"),
        local_server("no-such-model", []),
    ):
        pass


def test_a_url_without_models_needs_a_name() -> None:
    result = run("latency", "--url", "http://127.0.0.1:9", *SMALL)
    assert "must list a model, or --model name one" in str(result.exception)
