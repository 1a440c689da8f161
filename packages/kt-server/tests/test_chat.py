# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions against a fake engine."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from kt_server.sampling import SamplingDefaults

from .conftest import MODEL, Connect, chat_body, error_of, events
from .fake_engine import TOKENIZER, FakeEngine

URL = "/v1/chat/completions"


async def test_whole_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 4
    response = await client.post(URL, json=chat_body("Where?"))
    body = await response.json()
    assert response.status == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["id"].startswith("chatcmpl-")
    assert body["system_fingerprint"].endswith("-none-native")
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Paris."
    assert choice["finish_reason"] == "stop"
    num_prompt = len(TOKENIZER.encode("<|user|>Where?<|assistant|>"))
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 7,  # six characters and the end token
        "total_tokens": num_prompt + 7,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def test_stream_opens_with_the_role_and_closes_with_the_reason(
    client: TestClient, engine: FakeEngine
) -> None:
    chunks = await events(await client.post(URL, json=chat_body(stream=True)))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for c in choices) == "Paris."
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert engine.finished == {"stop": 1}


async def test_stream_reports_usage_when_asked(client: TestClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 3
    body = chat_body(stream=True, stream_options={"include_usage": True})
    chunks = await events(await client.post(URL, json=body))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_request_in_the_engine(
    client: TestClient, engine: FakeEngine, stream: bool
) -> None:
    engine.answer = "one, two, three" * 20
    response = await client.post(URL, json=chat_body(stop=["zz", ", tw"], stream=stream))
    if stream:
        choices = [chunk["choices"][0] for chunk in await events(response)]
        text = "".join(c["delta"].get("content", "") for c in choices)
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = (await response.json())["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("one", "stop")
    assert engine.finished == {"stop": 1}
    assert engine.stats().generated_tokens == len("one, tw")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_length_limit(client: TestClient, field: str) -> None:
    body = await (await client.post(URL, json=chat_body(**{field: 3}))).json()
    assert body["choices"][0]["message"]["content"] == "Par"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


async def test_characters_of_several_tokens_arrive_whole(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.answer = "東京 🙂"
    chunks = await events(await client.post(URL, json=chat_body(stream=True)))
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [text for text in texts if text] == ["東", "京", " ", "🙂"]


async def test_a_token_that_stops_is_no_part_of_the_text(client: TestClient) -> None:
    body = chat_body(stop_token_ids=TOKENIZER.encode("i"))
    choice = (await (await client.post(URL, json=body)).json())["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Par", "stop")


async def test_messages_reach_the_template(client: TestClient, engine: FakeEngine) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "c", "name": "ignored"},
    ]
    body = {"model": MODEL, "messages": messages, "chat_template_kwargs": {"suffix": "!"}}
    assert (await client.post(URL, json=body)).status == 200
    text = TOKENIZER.decode(engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert text == "<|system|>be brief<|user|>a\nb<|assistant|><|user|>c<|assistant|>!"


async def test_sampling_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": -1,
        "stop": "x",
        "stop_token_ids": [5],
        "ignore_eos": True,
        "max_tokens": 4,
        "user": "ignored",
        "metadata": {"also": "ignored"},
        "parallel_tool_calls": True,
    }
    assert (await client.post(URL, json=chat_body(**fields))).status == 200
    request = engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.seed, sampling.max_tokens) == (0.1, 2**64 - 1, 4)
    assert (sampling.stop, sampling.stop_token_ids) == (("x",), (5,))
    assert sampling.ignore_eos


async def test_checkpoint_s_defaults_apply_where_the_request_is_silent(
    connect: Connect, engine: FakeEngine
) -> None:
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=5)
    client = await connect(sampling_defaults=defaults)
    await client.post(URL, json=chat_body(top_p=0.5))
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.5, 20)
    assert sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("best_of", 3),
        ("prompt_logprobs", 1),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("continue_final_message", True),
        ("modalities", ["text", "audio"]),
    ],
)
async def test_what_would_change_the_answer_is_refused(
    client: TestClient, engine: FakeEngine, field: str, value: Any
) -> None:
    error = await error_of(await client.post(URL, json=chat_body(**{field: value})), 400)
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"
    assert engine.requests == []


async def test_sampling_fields_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    fields = {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [4],
    }
    body = chat_body(logit_bias={"5": 1, "70": -100}, logprobs=True, top_logprobs=3, **fields)
    assert (await client.post(URL, json=body)).status == 200
    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields | {"stop_token_ids": (4,)}
    assert sampling.logit_bias == {5: 1, 70: -100}
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, None)


async def test_a_priority_is_taken_where_the_engine_takes_it(
    client: TestClient, engine: FakeEngine
) -> None:
    error = await error_of(await client.post(URL, json=chat_body(priority=1)), 400)
    assert error["param"] == "priority"
    assert (await client.post(URL, json=chat_body(priority=0))).status == 200
    error = await error_of(await client.post(URL, json=chat_body(priority="high")), 400)
    assert error["param"] == "priority"
    engine.takes_priority = True
    assert (await client.post(URL, json=chat_body(priority=-7))).status == 200
    assert [request.priority for request in engine.requests] == [0, -7]


async def test_neutral_values_of_unsupported_fields_are_taken(client: TestClient) -> None:
    neutral: dict[str, Any] = {
        "n": 1,
        "best_of": 1,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "stop": None,
    }
    assert (await client.post(URL, json=chat_body(**neutral))).status == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "refuse"}], "messages"),
    ],
)
async def test_messages_that_cannot_be_rendered_are_refused(
    client: TestClient, messages: list[dict[str, Any]], param: str
) -> None:
    response = await client.post(URL, json={"model": MODEL, "messages": messages})
    assert (await error_of(response, 400))["param"] == param


async def test_the_template_s_own_words_reach_the_client(client: TestClient) -> None:
    error = await error_of(await client.post(URL, json=chat_body("refuse")), 400)
    assert "no refusing" in error["message"]


async def test_server_s_template_variables_cannot_be_replaced(client: TestClient) -> None:
    body = chat_body(chat_template_kwargs={"messages": []})
    error = await error_of(await client.post(URL, json=body), 400)
    assert error["param"] == "chat_template_kwargs"


async def test_a_template_variable_may_have_any_other_name(client: TestClient) -> None:
    body = chat_body(chat_template_kwargs={"self": 1, "loop": 2, "context": None})
    assert (await client.post(URL, json=body)).status == 200


async def test_base_models_do_not_chat(connect: Connect) -> None:
    client = await connect(template=None)
    error = await error_of(await client.post(URL, json=chat_body()), 400)
    assert error["code"] == "no_chat_template"
