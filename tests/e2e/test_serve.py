# SPDX-License-Identifier: Apache-2.0
"""A real model behind a real server: from HTTP to the kernels and back."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import subprocess
import threading
import time

import openai
import pytest

from kt_runtime.text import ChatTemplate, Tokenizer

from .conftest import KT, MODEL, Server, start_server

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def eventually(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_server_says_what_runs(server: Server, model_path) -> None:
    rows = dict(line.split(None, 1) for line in server.lines)
    assert rows["model"] == f"{MODEL} ({model_path})"
    text = "\n".join(server.lines)
    assert "kernel target   " in text
    assert "weight format   native" in text
    assert "context length  8192 tokens" in text


def test_the_answer_is_right(client: openai.OpenAI, model_path) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert chat.choices[0].message.content == ANSWER
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is not None
    tokenizer = Tokenizer.from_pretrained(model_path)
    template = ChatTemplate.from_pretrained(model_path)
    assert template is not None
    assert chat.usage.prompt_tokens == len(tokenizer.encode(template.render(QUESTION)))
    assert chat.usage.completion_tokens == len(tokenizer.encode(ANSWER)) + 1  # and the end token


def test_the_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert len(deltas) > 5
    assert chunks[-1].usage is not None


def test_a_prompt_seen_before_is_not_computed_again(server: Server, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Name three rivers of Germany, please."}]
    create = client.chat.completions.create
    first, second = (
        create(model=MODEL, messages=messages, temperature=0, max_tokens=8) for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert 16 <= cached < second.usage.prompt_tokens
    assert server.metrics()["kt_prompt_tokens_cached_total"] >= cached


def test_completions_of_several_prompts(client: openai.OpenAI, model_path) -> None:
    tokenizer = Tokenizer.from_pretrained(model_path)
    texts = ["The capital of France is", "1, 2, 3, 4,"]
    by_text = client.completions.create(model=MODEL, prompt=texts, temperature=0, max_tokens=4)
    by_ids = client.completions.create(
        model=MODEL, prompt=[tokenizer.encode(t) for t in texts], temperature=0, max_tokens=4
    )
    answers = [choice.text for choice in by_text.choices]
    assert "Paris" in answers[0]
    assert answers[1].startswith(" 5")
    assert [choice.text for choice in by_ids.choices] == answers


def test_echo_scores_an_answer_as_generating_it_did(client: openai.OpenAI, model_path) -> None:
    """A chunk of prompt and single decode steps give the same bits."""
    prompt = Tokenizer.from_pretrained(model_path).encode("The capital of France is")
    create = client.completions.create
    said = create(model=MODEL, prompt=prompt, temperature=0, max_tokens=5, logprobs=2).choices[0]
    assert said.logprobs is not None
    ids = [*prompt, *Tokenizer.from_pretrained(model_path).encode(said.text)]
    echo = create(model=MODEL, prompt=ids, echo=True, max_tokens=0, logprobs=2).choices[0]
    assert echo.logprobs is not None
    assert echo.text == "The capital of France is" + said.text
    assert echo.logprobs.tokens is not None
    assert echo.logprobs.tokens[len(prompt) :] == said.logprobs.tokens
    assert echo.logprobs.token_logprobs[len(prompt) :] == said.logprobs.token_logprobs
    assert echo.logprobs.top_logprobs[len(prompt) :] == said.logprobs.top_logprobs
    assert all(
        max(top.values()) == own
        for top, own in zip(said.logprobs.top_logprobs, said.logprobs.token_logprobs, strict=True)
    )


def test_stop_strings_and_seeds(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    stopped = create(model=MODEL, messages=QUESTION, temperature=0, stop=[" of Fr"])
    assert stopped.choices[0].message.content == "The capital"
    assert stopped.choices[0].finish_reason == "stop"

    def poem(seed: int) -> str | None:
        chat = create(
            model=MODEL,
            messages=[{"role": "user", "content": "Write a poem."}],
            temperature=1.0,
            seed=seed,
            max_tokens=12,
        )
        return chat.choices[0].message.content

    assert poem(1) == poem(1)
    assert len({poem(seed) for seed in (1, 2, 3)}) > 1


async def test_four_streams_at_once_share_steps(server: Server) -> None:
    """Four answers take fewer steps than they have tokens, and come side by side."""
    questions = ["Count to thirty.", "Tell me a story.", "What is water?", "Describe Paris."]
    before = server.metrics()
    order: list[int] = []

    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:

        async def ask(index: int) -> int:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": questions[index]}],
                temperature=0,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            num_tokens = 0
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    order.append(index)
                if chunk.usage:
                    num_tokens = chunk.usage.completion_tokens
            return num_tokens

        num_tokens = await asyncio.gather(*(ask(i) for i in range(4)))
    after = server.metrics()
    assert num_tokens == [24] * 4
    steps = after["kt_engine_steps_total"] - before["kt_engine_steps_total"]
    assert after["kt_generation_tokens_total"] - before["kt_generation_tokens_total"] == 96
    assert 24 <= steps < 96
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > 20  # one after the other would change three times


def test_a_client_that_leaves_frees_its_pages(server: Server) -> None:
    """A real socket, closed while the answer is made."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me a very long story."}],
            "stream": True,
            "ignore_eos": True,
        }
    ).encode()
    assert server.metrics()["kt_kv_pages{used}"] == 0
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}\r\n".encode() + body)
        received = b""
        while received.count(b"data: ") < 4:
            received += connection.recv(4096)
        assert server.metrics()["kt_kv_pages{used}"] > 0
    assert eventually(lambda: server.metrics()["kt_num_requests_running"] == 0)
    metrics = server.metrics()
    assert metrics["kt_kv_pages{used}"] == 0
    assert metrics["kt_request_finished_total{abort}"] >= 1


def test_errors_do_not_disturb_the_server(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-9", messages=QUESTION)
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        create(model=MODEL, messages=long)
    assert too_long.value.code == "context_length_exceeded"
    assert "8192" in str(too_long.value)
    ids = [10**6]
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=ids)
    answer = create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER


def test_sigterm_ends_streams_properly_and_exits_0(model_path) -> None:
    server = start_server("--weight-format", "int8", "--served-model-name", "mine")
    text = "\n".join(server.lines)
    assert "weight format   int8" in text
    broken: list[openai.APIError] = []

    def read() -> None:
        with server.client() as client:
            stream = client.chat.completions.create(
                model="mine",
                messages=[{"role": "user", "content": "Tell me a very long story."}],
                stream=True,
                extra_body={"ignore_eos": True},
            )
            try:
                for chunk in stream:
                    del chunk
                    started.set()
            except openai.APIError as error:
                broken.append(error)

    started = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(60)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0, "".join(server.log)
    reader.join(10)
    assert not reader.is_alive()
    assert [error.code for error in broken] == ["engine_closed"]
    assert "Traceback" not in "".join(server.log)


def test_chat_answers_piped_questions(model_path) -> None:
    result = subprocess.run(
        [KT, "chat", MODEL, "--temperature", "0"],
        input=QUESTION[0]["content"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (result.returncode, result.stdout) == (0, f"{ANSWER}\n"), result.stderr
