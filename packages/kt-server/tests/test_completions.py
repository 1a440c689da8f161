# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions against a fake engine."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from .conftest import completion_body, error_of, events
from .fake_engine import TOKENIZER, FakeEngine

URL = "/v1/completions"


def echo_prompt(engine: FakeEngine) -> None:
    engine.answer = lambda request: TOKENIZER.decode(request.prompt_token_ids).upper()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["AB"]),
        (TOKENIZER.encode("cd"), ["CD"]),
        (["ab", "cd", "e"], ["AB", "CD", "E"]),
        ([TOKENIZER.encode("fg"), TOKENIZER.encode("h")], ["FG", "H"]),
    ],
)
async def test_every_form_of_prompt(
    client: TestClient, engine: FakeEngine, prompt: Any, texts: list[str]
) -> None:
    echo_prompt(engine)
    body = await (await client.post(URL, json=completion_body(prompt))).json()
    assert body["object"] == "text_completion"
    assert [choice["text"] for choice in body["choices"]] == texts
    assert [choice["index"] for choice in body["choices"]] == list(range(len(texts)))
    assert {choice["finish_reason"] for choice in body["choices"]} == {"stop"}
    num_characters = sum(map(len, texts))
    assert body["usage"]["prompt_tokens"] == num_characters
    assert body["usage"]["completion_tokens"] == num_characters + len(texts)


async def test_streams_of_several_prompts_interleave(
    client: TestClient, engine: FakeEngine
) -> None:
    echo_prompt(engine)
    engine.token_s = 0.005
    body = completion_body(["abcd", "wxyz"], stream=True, stream_options={"include_usage": True})
    chunks = await events(await client.post(URL, json=body))
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    for index, text in enumerate(["ABCD", "WXYZ"]):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == text
        assert mine[-1]["finish_reason"] == "stop"
    order = [choice["index"] for choice in choices]
    assert order != sorted(order)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 10


async def test_length_is_openai_s_sixteen_unless_given(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.answer = "x" * 50
    body = await (await client.post(URL, json=completion_body())).json()
    assert body["choices"][0]["text"] == "x" * 16
    assert body["choices"][0]["finish_reason"] == "length"


async def test_one_failing_prompt_ends_the_request(client: TestClient, engine: FakeEngine) -> None:
    engine.fail_at = 2
    engine.token_s = 0.01
    await error_of(await client.post(URL, json=completion_body(["a", "b"])), 500)
    assert engine.stats().num_running == 0


@pytest.mark.parametrize(
    "prompt", ["", [], ["a", 1], [[1], "a"], [1, [2]], [[]], [-1], [10**6], [True], {"a": 1}, 5]
)
async def test_impossible_prompts_are_refused(client: TestClient, prompt: Any) -> None:
    error = await error_of(await client.post(URL, json=completion_body(prompt)), 400)
    assert error["param"].startswith("prompt")


@pytest.mark.parametrize(("field", "value"), [("suffix", "x"), ("prompt_logprobs", 1)])
async def test_what_would_change_the_answer_is_refused(
    client: TestClient, field: str, value: Any
) -> None:
    error = await error_of(await client.post(URL, json=completion_body(**{field: value})), 400)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
