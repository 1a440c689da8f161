# SPDX-License-Identifier: Apache-2.0
"""The real openai client against the server: what it parses, and which exceptions it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from aiohttp.test_utils import TestClient

from .conftest import MODEL
from .fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "Where?"}]


@pytest.fixture
def sync_client(client: TestClient) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=str(client.make_url("/v1")), api_key="none", max_retries=0
    ) as openai_client:
        yield openai_client


@pytest.fixture
async def async_client(client: TestClient):
    async with openai.AsyncOpenAI(
        base_url=str(client.make_url("/v1")), api_key="none", max_retries=0
    ) as openai_client:
        yield openai_client


async def test_sync_stream(sync_client: openai.OpenAI) -> None:
    def ask() -> tuple[str, openai.types.CompletionUsage | None]:
        stream = sync_client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        return text, chunks[-1].usage

    text, usage = await asyncio.to_thread(ask)
    assert text == "Paris."
    assert usage is not None
    assert usage.completion_tokens == 7


async def test_async_whole_and_streamed(async_client: openai.AsyncOpenAI) -> None:
    chat = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=1)
    assert chat.choices[0].message.content == "Paris."
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == 0
    async with async_client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Paris."
    assert final.choices[0].finish_reason == "stop"


async def test_completions(async_client: openai.AsyncOpenAI) -> None:
    completion = await async_client.completions.create(model=MODEL, prompt=["a", "b"])
    assert [choice.text for choice in completion.choices] == ["Paris.", "Paris."]
    texts = ["", ""]
    async for chunk in await async_client.completions.create(
        model=MODEL, prompt=["a", "b"], stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["Paris.", "Paris."]


async def test_logprobs(async_client: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.answer = "né"
    ask = {"model": MODEL, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    chat = await async_client.chat.completions.create(**ask)
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].token == "n"
    assert bytes(b for item in logprobs.content for b in item.bytes or []) == "né<|end|>".encode()
    assert [len(item.top_logprobs) for item in logprobs.content] == [2] * 4
    async with async_client.chat.completions.stream(**ask) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content == logprobs.content
    completion = await async_client.completions.create(
        model=MODEL, prompt="ab", echo=True, logprobs=1, max_tokens=0
    )
    assert completion.choices[0].text == "ab"
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == ["a", "b"]
    assert completion.choices[0].logprobs.token_logprobs == [None, -1.25]
    with pytest.raises(openai.BadRequestError) as bad:
        await async_client.chat.completions.create(**ask, logit_bias={"99999": 1})
    assert bad.value.param == "logit_bias"


async def test_models(async_client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in async_client.models.list()] == [MODEL]
    assert (await async_client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await async_client.models.retrieve("gpt-9")


async def test_errors_map_to_the_client_s_exceptions(
    async_client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    create = async_client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as not_found:
        await create(model="gpt-9", messages=MESSAGES)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model=MODEL, messages=MESSAGES, n=2)
    assert (bad.value.param, bad.value.code) == ("n", "unsupported_parameter")
    long = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(openai.BadRequestError) as too_long:
        await create(model=MODEL, messages=long)
    assert too_long.value.code == "context_length_exceeded"
    engine.max_running = 0
    with pytest.raises(openai.InternalServerError) as full:
        await create(model=MODEL, messages=MESSAGES)
    assert full.value.status_code == 503


async def test_an_error_in_the_middle_of_a_stream_raises(
    async_client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.fail_at = 3
    stream = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="kernel fell over"):
        async for _ in stream:
            pass


async def test_retry_after_is_heeded(client: TestClient, engine: FakeEngine) -> None:
    """With retries on, a full queue is waited out: the client reads our Retry-After."""
    engine.max_running = 0
    waits: list[float] = []

    async with openai.AsyncOpenAI(
        base_url=str(client.make_url("/v1")), api_key="none", max_retries=1
    ) as openai_client:
        original = openai_client._sleep_for_retry

        async def sleep(**arguments):
            waits.append(float(arguments["response"].headers["Retry-After"]))
            engine.max_running = 1

        assert original is not None
        openai_client._sleep_for_retry = sleep
        chat = await openai_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert chat.choices[0].message.content == "Paris."
    assert waits == [5.0]
