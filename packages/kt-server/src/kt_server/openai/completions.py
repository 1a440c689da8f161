# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: one or several prompts in, the text that follows each out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from aiohttp import web

from kt_runtime.core import Request
from kt_runtime.text import Detokenizer, Tokenizer
from kt_server.errors import ApiError
from kt_server.generation import TextDelta, interleave, text_deltas
from kt_server.openai.logprobs import completion_logprobs, extend, prompt_logprobs
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
from kt_server.tenant import tenant_of

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create_completion(http_request: web.Request) -> web.StreamResponse:
    """The handler."""
    served = http_request.app[SERVED]
    request = await read_request(http_request, CompletionRequest)
    max_tokens = request.max_tokens
    sampling = sampling_params(
        served,
        request,
        max_tokens=_DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )
    prompts = await asyncio.to_thread(_prompts, served, request)
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    tenant = tenant_of(http_request, request.cache_salt)
    jobs = [
        engine_request(
            served, f"{completion_id}-{i}", prompt.token_ids, sampling, request, "prompt", tenant
        )
        for i, prompt in enumerate(prompts)
    ]
    choices = [
        _Choice(served.tokenizer, i, prompt, bool(request.echo), request.logprobs is not None)
        for i, prompt in enumerate(prompts)
    ]

    def deltas(job: Request) -> AsyncGenerator[TextDelta, None]:
        skip = request.skip_special_tokens is not False
        detokenizer = Detokenizer(
            served.tokenizer,
            sampling.stop,
            skip,
            continues_text=True,
            min_tokens=sampling.min_tokens,
        )
        return text_deltas(served.engine, job, detokenizer, served.metrics.timed)

    answers = interleave([deltas(job) for job in jobs])
    if request.stream:
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        events = _chunks(served, completion_id, answers, choices, include_usage)
        return await send_events(http_request, events, served.config.keepalive_s)
    return json_response(await _whole(served, completion_id, answers, choices))


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt as the model gets it, and the text it came as, if it did."""

    token_ids: list[int]
    text: str | None


def _prompts(served: Served, request: CompletionRequest) -> list[_Prompt]:
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
        return [_Prompt(ids, None)]
    return [_Prompt(each, None) for each in lists] or [
        _Prompt(encode(served, text, "prompt", add_special_tokens=True), text) for text in texts
    ]


class _Choice:
    """One prompt's part of the answer, piece by piece. With `echo` the prompt leads the first."""

    def __init__(
        self, tokenizer: Tokenizer, index: int, prompt: _Prompt, echo: bool, scored: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._index = index
        self._prompt = prompt
        self._scored = scored
        self._shown = ""  # of the prompt
        if echo:
            text = prompt.text
            if text is None:
                text = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
            self._shown = text
        self._has_begun = False

    def piece(self, delta: TextDelta) -> CompletionChoice:
        """What `delta` adds."""
        text = delta.text
        logprobs = None
        if self._scored:
            logprobs = completion_logprobs(self._tokenizer, delta.tokens, len(self._shown))
        if not self._has_begun:
            self._has_begun = True
            text = self._shown + text
            if logprobs is not None and delta.prompt_logprobs is not None:
                before = prompt_logprobs(
                    self._tokenizer, self._shown, self._prompt.token_ids, delta.prompt_logprobs
                )
                extend(before, logprobs)
                logprobs = before
        return CompletionChoice(
            index=self._index, text=text, logprobs=logprobs, finish_reason=delta.finish_reason
        )


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
    choices: Sequence[_Choice],
) -> Completion:
    pieces: list[list[CompletionChoice]] = [[] for _ in choices]
    account = _Account()
    async with aclosing(answers):
        async for index, delta in answers:
            pieces[index].append(choices[index].piece(delta))
            account.note(index, delta)
    return Completion(
        id=completion_id,
        created=int(time.time()),
        model=served.model_name,
        choices=[_joined(mine) for mine in pieces],
        usage=account.usage(),
        system_fingerprint=served.system_fingerprint,
    )


def _joined(pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    """One choice out of its pieces, of which there is at least the last."""
    whole = pieces[0]
    for piece in pieces[1:]:
        if whole.logprobs is not None and piece.logprobs is not None:
            extend(whole.logprobs, piece.logprobs)
    whole.text = "".join(piece.text for piece in pieces)
    whole.finish_reason = pieces[-1].finish_reason
    return whole


async def _chunks(
    served: Served,
    completion_id: str,
    answers: AsyncGenerator[tuple[int, TextDelta], None],
    choices: Sequence[_Choice],
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
            chunk.choices = [choices[index].piece(delta)]
            yield msgspec.json.encode(chunk)
    if include_usage:
        chunk.choices = []
        chunk.usage = account.usage()
        yield msgspec.json.encode(chunk)
