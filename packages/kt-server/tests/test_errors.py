# SPDX-License-Identifier: Apache-2.0
"""Hostile input: the right status in OpenAI's shape, and the server still answers afterwards."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from kt_runtime.core import EngineClosedError
from kt_server.errors import as_api_error

from .conftest import MODEL, Connect, chat_body, completion_body, error_of
from .fake_engine import FakeEngine

CHAT = "/v1/chat/completions"


def chat_json(**fields: Any) -> bytes:
    return json.dumps(chat_body(**fields)).encode()


# body, status, param, code
HOSTILE = {
    "no body": (b"", 400, None, "invalid_json"),
    "not JSON": (b"hello", 400, None, "invalid_json"),
    "cut off": (chat_json()[:-5], 400, None, "invalid_json"),
    "not UTF-8": (chat_json().replace(b'"hi"', b'"\xff\xfe"'), 400, None, "invalid_json"),
    "lone surrogate": (chat_json().replace(b'"hi"', b'"\\ud800"'), 400, None, "invalid_json"),
    "an array": (b"[1, 2]", 400, None, None),
    "nested deeply": (
        chat_json().replace(b'"hi"', b"[" * 100_000 + b"]" * 100_000),
        400,
        None,
        None,
    ),
    "unknown field nested deeply": (
        b'{"junk":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        400,
        None,
        "invalid_json",
    ),
    "no model": (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model", None),
    "no messages": (json.dumps({"model": MODEL}).encode(), 400, "messages", None),
    "empty messages": (chat_json(messages=[]), 400, "messages", None),
    "message without role": (chat_json(messages=[{"content": "x"}]), 400, "messages[0]", None),
    "content of a wrong type": (chat_json(content=7), 400, "messages[0].content", None),
    "unknown model": (chat_json(model="gpt-9"), 404, "model", "model_not_found"),
    "negative max_tokens": (chat_json(max_tokens=-1), 400, "max_tokens", None),
    "zero max_tokens": (chat_json(max_tokens=0), 400, "max_tokens", None),
    "fractional max_tokens": (chat_json(max_tokens=1.5), 400, "max_tokens", None),
    "max_tokens as text": (chat_json(max_tokens="9"), 400, "max_tokens", None),
    "negative temperature": (chat_json(temperature=-0.1), 400, "temperature", None),
    "infinite temperature": (
        chat_json(temperature=7).replace(b"7", b"1e999"),
        400,
        "temperature",
        None,
    ),
    "NaN temperature": (chat_json(temperature=float("nan")), 400, None, "invalid_json"),
    "top_p of zero": (chat_json(top_p=0), 400, "top_p", None),
    "top_p above one": (chat_json(top_p=1.1), 400, "top_p", None),
    "top_k below -1": (chat_json(top_k=-2), 400, "top_k", None),
    "min_p above one": (chat_json(min_p=2), 400, "min_p", None),
    "seed too large": (chat_json(seed=2**64), 400, "seed", None),
    "five stop strings": (chat_json(stop=list("abcde")), 400, "stop", None),
    "empty stop string": (chat_json(stop=""), 400, "stop", None),
    "empty stop string in a list": (chat_json(stop=["a", ""]), 400, "stop[1]", None),
    "presence_penalty above two": (chat_json(presence_penalty=2.5), 400, "presence_penalty", None),
    "frequency_penalty below -2": (chat_json(frequency_penalty=-3), 400, "frequency_penalty", None),
    "no repetition_penalty": (chat_json(repetition_penalty=0), 400, "repetition_penalty", None),
    "bias above 100": (chat_json(logit_bias={"1": 101}), 400, "logit_bias", None),
    "bias on a word": (chat_json(logit_bias={"the": 1}), 400, "logit_bias", None),
    "bias on an unknown id": (chat_json(logit_bias={"99999": 1}), 400, "logit_bias", None),
    "negative min_tokens": (chat_json(min_tokens=-1), 400, "min_tokens", None),
    "min_tokens above max_tokens": (chat_json(min_tokens=9, max_tokens=8), 400, "min_tokens", None),
    "21 top_logprobs": (chat_json(logprobs=True, top_logprobs=21), 400, "top_logprobs", None),
    "top_logprobs alone": (chat_json(top_logprobs=2), 400, "top_logprobs", None),
    "logprobs as a number": (chat_json(logprobs=3), 400, "logprobs", None),
    "stream as text": (chat_json(stream="yes"), 400, "stream", None),
    "prompt too long": (chat_json(content="x" * 600), 400, "messages", "context_length_exceeded"),
}


@pytest.mark.parametrize(("body", "status", "param", "code"), HOSTILE.values(), ids=HOSTILE)
async def test_hostile_body(
    client: TestClient,
    engine: FakeEngine,
    body: bytes,
    status: int,
    param: str | None,
    code: str | None,
) -> None:
    error = await error_of(await client.post(CHAT, data=body), status)
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []
    assert (await client.post(CHAT, json=chat_body())).status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat_body("x" * 10_000), "messages"),
        ("/v1/completions", completion_body("x" * 10_000), "prompt"),
        ("/v1/completions", completion_body(["short", "x" * 10_000]), "prompt"),
    ],
)
async def test_a_text_that_can_never_fit_is_refused_without_encoding_it(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    # 500 tokens of at most 13 characters ("<|assistant|>")
    error = await error_of(await client.post(path, json=body), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "500 tokens, at most 6500 characters; got 10" in error["message"]


async def test_a_body_that_is_not_in_its_encoding(client: TestClient) -> None:
    headers = {"Content-Encoding": "gzip"}
    response = await client.post(CHAT, data=chat_json(), headers=headers)
    assert (await error_of(response, 400))["code"] == "invalid_body"
    packed = await client.post(CHAT, data=gzip.compress(chat_json()), headers=headers)
    assert packed.status == 200


async def test_context_length_error_has_both_numbers(client: TestClient) -> None:
    prompt = "x" * 600
    error = await error_of(await client.post("/v1/completions", json=completion_body(prompt)), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "500" in error["message"]
    assert "601" in error["message"]


@pytest.mark.parametrize("declared", [True, False])
async def test_body_too_large(connect: Connect, declared: bool) -> None:
    client = await connect(max_body_bytes=2000)
    large = chat_json(content="x" * 3000)

    async def in_pieces() -> Any:  # without a length, as in chunked transfer
        for start in range(0, len(large), 500):
            yield large[start : start + 500]

    response = await client.post(CHAT, data=large if declared else in_pieces())
    assert (await error_of(response, 413))["code"] == "body_too_large"
    assert (await client.post(CHAT, json=chat_body())).status == 200


async def test_bodies_over_aiohttp_s_own_limit_are_taken(client: TestClient) -> None:
    body = chat_body(metadata={"padding": "x" * (2 << 20)})
    assert (await client.post(CHAT, json=body)).status == 200


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings", "/v1/chat/completions/x"])
async def test_unknown_path(client: TestClient, path: str) -> None:
    assert (await error_of(await client.get(path), 404))["code"] == "not_found"


async def test_wrong_method_names_the_right_one(client: TestClient) -> None:
    response = await client.get(CHAT)
    error = await error_of(response, 405)
    assert error["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
async def test_full_queue_asks_to_come_back(
    client: TestClient, engine: FakeEngine, stream: bool
) -> None:
    engine.max_running = 0
    response = await client.post(CHAT, json=chat_body(stream=stream))
    error = await error_of(response, 503)
    assert (error["type"], error["code"]) == ("server_error", "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_s_failure_before_the_first_token(
    client: TestClient, engine: FakeEngine, stream: bool
) -> None:
    engine.fail_at = 1
    error = await error_of(await client.post(CHAT, json=chat_body(stream=stream)), 500)
    assert error["code"] == "generation_failed"
    assert error["message"] == "kernel fell over"


async def test_unexpected_errors_keep_their_details_to_the_log(
    client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: object) -> str:
        raise KeyError("secret")

    engine.answer = broken
    error = await error_of(await client.post(CHAT, json=chat_body()), 500)
    assert "secret" not in error["message"]
    assert "secret" in caplog.text


def test_a_closed_engine_is_unavailable_not_broken() -> None:
    error = as_api_error(EngineClosedError("[engine.add] closed"))
    assert (error.status, error.code) == (503, "engine_closed")
