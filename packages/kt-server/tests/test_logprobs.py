# SPDX-License-Identifier: Apache-2.0
"""Log probabilities and echo over HTTP: both shapes, streamed and whole."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from kt_server.openai.logprobs import completion_logprobs, prompt_logprobs, token_name

from .conftest import chat_body, completion_body, events
from .fake_engine import TOKENIZER, FakeEngine, fake_logprobs

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def whole_and_streamed(client: TestClient, url: str, body: dict[str, Any]) -> tuple[Any, Any]:
    whole = await (await client.post(url, json=body)).json()
    return whole["choices"], await events(await client.post(url, json=body | {"stream": True}))


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    ids = TOKENIZER.encode("é!")
    assert [token_name(TOKENIZER, i) for i in ids] == ["bytes:\\xc3", "bytes:\\xa9", "!"]


@pytest.mark.parametrize("num_top", [0, 3])
async def test_chat(client: TestClient, engine: FakeEngine, num_top: int) -> None:
    engine.answer = "né."
    body = chat_body(logprobs=True, top_logprobs=num_top)
    choices, chunks = await whole_and_streamed(client, CHAT, body)
    content = choices[0]["logprobs"]["content"]
    assert [item["token"] for item in content] == [
        "n",
        "bytes:\\xc3",
        "bytes:\\xa9",
        ".",
        "<|end|>",
    ]
    data = b"".join(bytes(item["bytes"]) for item in content)
    assert data == "né.<|end|>".encode()
    assert {item["logprob"] for item in content} == {-1.25}
    for item in content:
        assert [top["logprob"] for top in item["top_logprobs"]] == [-0.25, -0.75, -1.25][:num_top]
        assert num_top == 0 or item["top_logprobs"][2]["bytes"] == item["bytes"]
    streamed = []
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["logprobs"] is not None:
            streamed += choice["logprobs"]["content"]
    assert streamed == content


async def test_without_asking_there_are_none(client: TestClient) -> None:
    for body in (chat_body(), chat_body(logprobs=False)):
        choices, chunks = await whole_and_streamed(client, CHAT, body)
        assert choices[0]["logprobs"] is None
        assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


async def test_a_stop_string_trims_both_text_and_logprobs(client: TestClient) -> None:
    body = chat_body(logprobs=True, stop="is")
    choices, chunks = await whole_and_streamed(client, CHAT, body)
    tokens = [item["token"] for item in choices[0]["logprobs"]["content"]]
    assert ("".join(tokens), choices[0]["message"]["content"]) == ("Par", "Par")
    streamed = [c["choices"][0]["logprobs"] for c in chunks]
    assert [i["token"] for part in streamed if part for i in part["content"]] == tokens


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 9])
async def test_echo_with_logprobs(
    client: TestClient, engine: FakeEngine, max_tokens: int, as_ids: bool
) -> None:
    engine.answer = "né."
    text = "<|user|>é a"
    prompt = TOKENIZER.encode(text) if as_ids else text
    body = completion_body(prompt, echo=True, logprobs=1, max_tokens=max_tokens)
    choices, chunks = await whole_and_streamed(client, COMPLETIONS, body)
    (choice,) = choices
    assert choice["text"] == text + "né."[:max_tokens]
    logprobs = choice["logprobs"]
    names = ["<|user|>", "bytes:\\xc3", "bytes:\\xa9", " ", "a"]
    names += ["n", "bytes:\\xc3", "bytes:\\xa9", ".", "<|end|>"][:max_tokens]
    assert logprobs["tokens"] == names
    assert logprobs["text_offset"] == [0, 8, 8, 9, 10, 11, 12, 12, 13, 14][: len(names)]
    assert logprobs["token_logprobs"] == [None, *[-1.25] * (len(names) - 1)]
    assert logprobs["top_logprobs"][0] is None
    for name, top in zip(names[1:], logprobs["top_logprobs"][1:], strict=True):
        assert set(top) >= {name}
        assert len(top) == 2  # the best, and the token itself
    assert choice["finish_reason"] == ("stop" if max_tokens == 9 else "length")
    joined: dict[str, list[Any]] = {key: [] for key in logprobs}
    for chunk in chunks:
        for key, values in chunk["choices"][0]["logprobs"].items():
            joined[key] += values
    assert joined == logprobs
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


async def test_echo_of_several_prompts(client: TestClient, engine: FakeEngine) -> None:
    engine.answer = "!"
    body = completion_body(["ab", "c"], echo=True)
    choices, chunks = await whole_and_streamed(client, COMPLETIONS, body)
    assert [choice["text"] for choice in choices] == ["ab!", "c!"]
    assert [choice["logprobs"] for choice in choices] == [None, None]
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["ab!", "c!"]
    assert all(request.sampling.prompt_logprobs is None for request in engine.requests)


async def test_no_tokens_and_no_echo_is_an_empty_answer(client: TestClient) -> None:
    body = await (await client.post(COMPLETIONS, json=completion_body(max_tokens=0))).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "length")
    assert body["usage"]["completion_tokens"] == 0


async def test_loglikelihood_as_evaluation_harnesses_ask_for_it(client: TestClient) -> None:
    """lm-eval's requests: one token more than the prompt, of which the last is dropped."""
    context, continuation = TOKENIZER.encode("ab"), TOKENIZER.encode("cde")
    body = completion_body(
        [context + continuation], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1
    )
    choice = (await (await client.post(COMPLETIONS, json=body)).json())["choices"][0]
    scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
    tokens = choice["logprobs"]["tokens"][len(context) : -1]
    assert (tokens, scores) == (["c", "d", "e"], [-1.25] * 3)


def test_a_token_that_the_tokenizer_added_takes_no_characters() -> None:
    ids = [*TOKENIZER.encode("<|user|>"), *TOKENIZER.encode("hé")]
    scores = [None, *(fake_logprobs(i, 0) for i in ids[1:])]
    logprobs = prompt_logprobs(TOKENIZER, "hé", ids, scores)
    assert logprobs.text_offset == [0, 0, 1, 1]


def test_what_cannot_be_is_a_number_in_json() -> None:
    from kt_runtime.core import TokenLogprobs
    from kt_server.generation import ScoredToken

    token = ScoredToken(0, TokenLogprobs(65, float("-inf"), ((66, -0.0), (67, float("-inf")))))
    logprobs = completion_logprobs(TOKENIZER, [token], 5)
    assert logprobs.token_logprobs == [-9999.0]
    assert sorted(logprobs.top_logprobs[0].values()) == [-9999.0, -9999.0, 0.0]
    assert logprobs.text_offset == [5]
