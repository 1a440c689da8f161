# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: one or several prompts in, the text that follows each out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from aiohttp import web

from kt_runtime.core import Request
from kt_runtime.text import Detokenizer
from kt_server.errors import ApiError
from kt_server.generation import TextDelta, interleave, text_deltas
from kt_server.openai.requests import (
    encode,
    engine_request,
    json_response,
    read_request,
    sampling_params,
    usage,
)
from kt_server.openai.types import Completion, CompletionChoice, CompletionRequest, Usage
from kt_server.served import SERVED, Served
from kt_server.sse import send_events

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create_completion(http_request: web.Request) -> web.StreamResponse:
    """The handler."""
    served = http_request.app[SERVED]
    request = await read_request(http_request, CompletionRequest)
    sampling = sampling_params(served, request, request.max_tokens or _DEFAULT_MAX_TOKENS)
    prompts = await asyncio.to_thread(_prompts, served, request)
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    jobs = [
        engine_request(served, f"{completion_id}-{i}", ids, sampling, request.cache_salt, "prompt")
        for i, ids in enumerate(prompts)
    ]

    def deltas(job: Request) -> AsyncGenerator[TextDelta, None]:
        skip = request.skip_special_tokens is not False
        detokenizer = Detokenizer(served.tokenizer, sampling.stop, skip, continues_text=True)
        return text_deltas(served.metrics.timed(served.engine.generate(job)), detokenizer)

    answers = interleave([deltas(job) for job in jobs])
    if request.stream:
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        events = _chunks(served, completion_id, answers, include_usage)
        return await send_events(http_request, events, served.config.keepalive_s)
    return json_response(await _whole(served, completion_id, answers, len(jobs)))


def _prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
    """Each prompt as token ids; texts get the tokenizer's own beginning-of-text tokens."""
    prompt = request.prompt
    items = [prompt] if isinstance(prompt, str) else prompt
    texts = [item for item in items if isinstance(item, str)]
    ids = [item for item in items if isinstance(item, int)]
    lists = [item for item in items if isinstance(item, list)]
    if not items or len(items) not in (len(texts), len(ids), len(lists)):
        rule = "prompt must be a text, texts, token ids or lists of token ids, and not empty"
        raise ApiError(400, rule, param="prompt")
    if ids:
        return [ids]
    return lists or [encode(served, text, "prompt", add_special_tokens=True) for text in texts]


class _Account:
    """Usage over all prompts of a request: the last news of each, summed."""

    def __init__(self) -> None:
        self._last: dict[int, TextDelta] = {}

    def note(self, index: int, delta: TextDelta) -> None:
        self._last[index] = delta

    def usage(self) -> Usage:
        deltas = self._last.values()
        return usage(
            sum(delta.num_prompt_tokens for delta in deltas),
            sum(delta.num_cached_tokens for delta in deltas),
            sum(delta.num_generated_tokens for delta in deltas),
        )


async def _whole(
    served: Served,
    completion_id: str,
    answers: AsyncGenerator[tuple[int, TextDelta], None],
    num_prompts: int,
) -> Completion:
    choices = [CompletionChoice(index=i, text="", finish_reason=None) for i in range(num_prompts)]
    texts: list[list[str]] = [[] for _ in range(num_prompts)]
    account = _Account()
    async with aclosing(answers):
        async for index, delta in answers:
            texts[index].append(delta.text)
            choices[index].finish_reason = delta.finish_reason
            account.note(index, delta)
    for choice in choices:
        choice.text = "".join(texts[choice.index])
    return Completion(
        id=completion_id,
        created=int(time.time()),
        model=served.model_name,
        choices=choices,
        usage=account.usage(),
        system_fingerprint=served.system_fingerprint,
    )


async def _chunks(
    served: Served,
    completion_id: str,
    answers: AsyncGenerator[tuple[int, TextDelta], None],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    chunk = Completion(
        id=completion_id,
        created=int(time.time()),
        model=served.model_name,
        choices=[],
        usage=None if include_usage else msgspec.UNSET,
        system_fingerprint=served.system_fingerprint,
    )
    account = _Account()
    async with aclosing(answers):
        async for index, delta in answers:
            account.note(index, delta)
            chunk.choices = [
                CompletionChoice(index=index, text=delta.text, finish_reason=delta.finish_reason)
            ]
            yield msgspec.json.encode(chunk)
    if include_usage:
        chunk.choices = []
        chunk.usage = account.usage()
        yield msgspec.json.encode(chunk)
