# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions: messages in, one answer out, streamed or whole."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from aiohttp import web

from kt_runtime.text import Detokenizer
from kt_server.errors import ApiError
from kt_server.generation import ScoredToken, TextDelta, text_deltas
from kt_server.openai.logprobs import chat_logprobs
from kt_server.openai.requests import (
    encode,
    engine_request,
    json_response,
    read_request,
    sampling_params,
    usage,
)
from kt_server.openai.types import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    FinishReason,
)
from kt_server.served import SERVED, Served
from kt_server.sse import send_events
from kt_server.tenant import tenant_of

# What the newest clients call the system message; templates know the older name.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What the server itself gives templates; a request cannot replace it.
_RESERVED_TEMPLATE_NAMES = {"messages", "tools", "documents", "add_generation_prompt"}


async def create_chat_completion(http_request: web.Request) -> web.StreamResponse:
    """The handler."""
    served = http_request.app[SERVED]
    request = await read_request(http_request, ChatCompletionRequest)
    sampling = sampling_params(
        served,
        request,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=_num_logprobs(request),
    )
    # In a thread: rendering and tokenizing a long conversation would hold up everyone's tokens.
    prompt_token_ids = await asyncio.to_thread(_prompt_token_ids, served, request)
    completion_id = f"chatcmpl-{uuid.uuid4().hex}"
    tenant = tenant_of(http_request, request.cache_salt)
    job = engine_request(
        served, completion_id, prompt_token_ids, sampling, request, "messages", tenant
    )
    detokenizer = Detokenizer(
        served.tokenizer,
        sampling.stop,
        request.skip_special_tokens is not False,
        min_tokens=sampling.min_tokens,
    )
    deltas = text_deltas(served.engine, job, detokenizer, served.metrics.timed)
    if request.stream:
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        events = _chunks(served, completion_id, deltas, include_usage)
        return await send_events(http_request, events, served.config.keepalive_s)
    scored = bool(request.logprobs)
    return json_response(await _whole(served, completion_id, deltas, scored))


def _num_logprobs(request: ChatCompletionRequest) -> int | None:
    if not request.logprobs and request.top_logprobs:
        message = f"top_logprobs needs logprobs to be true; got {request.top_logprobs}"
        raise ApiError(400, message, param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _prompt_token_ids(served: Served, request: ChatCompletionRequest) -> list[int]:
    if served.chat_template is None:
        message = "the model has no chat template; use /v1/completions"
        raise ApiError(400, message, param="messages", code="no_chat_template")
    variables = request.chat_template_kwargs or {}
    if reserved := _RESERVED_TEMPLATE_NAMES & variables.keys():
        message = f"chat_template_kwargs must not hold {', '.join(sorted(reserved))}"
        raise ApiError(400, message, param="chat_template_kwargs")
    messages = [_template_message(m, i) for i, m in enumerate(request.messages)]
    try:
        text = served.chat_template.render(messages, **variables)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None
    return encode(served, text, "messages", add_special_tokens=False)


def _template_message(message: ChatMessage, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    if message.role not in _ROLES:
        rule = f"role must be one of {', '.join(_ROLES)}; got {message.role!r:.100}"
        raise ApiError(400, rule, param=f"{where}.role")
    if message.tool_calls or message.function_call:
        rule = "tool calls are not supported by this server"
        raise ApiError(400, rule, param=f"{where}.tool_calls", code="unsupported_parameter")
    return {"role": _ROLES[message.role], "content": _text(message, where)}


def _text(message: ChatMessage, where: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant":  # an answer that was empty
            return ""
        raise ApiError(400, "content must be text; got null", param=f"{where}.content")
    for i, part in enumerate(message.content):
        if part.type != "text":
            rule = f"content parts must be text; got {part.type!r:.100}"
            param = f"{where}.content[{i}]"
            raise ApiError(400, rule, param=param, code="unsupported_content")
        if part.text is None:
            raise ApiError(400, "text must be present", param=f"{where}.content[{i}].text")
    return "\n".join(part.text or "" for part in message.content)


async def _whole(
    served: Served, completion_id: str, deltas: AsyncGenerator[TextDelta, None], scored: bool
) -> ChatCompletion:
    texts: list[str] = []
    tokens: list[ScoredToken] = []
    last: TextDelta | None = None
    async with aclosing(deltas):
        async for last in deltas:
            texts.append(last.text)
            tokens += last.tokens
    assert last is not None
    assert last.finish_reason is not None
    choice = ChatChoice(
        message=AssistantMessage(content="".join(texts)),
        logprobs=chat_logprobs(served.tokenizer, tokens) if scored else None,
        finish_reason=last.finish_reason,
    )
    return ChatCompletion(
        id=completion_id,
        created=int(time.time()),
        model=served.model_name,
        choices=[choice],
        usage=usage(last.num_prompt_tokens, last.num_cached_tokens, last.num_generated_tokens),
        system_fingerprint=served.system_fingerprint,
    )


async def _chunks(
    served: Served,
    completion_id: str,
    deltas: AsyncGenerator[TextDelta, None],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    chunk = ChatChunk(
        id=completion_id,
        created=int(time.time()),
        model=served.model_name,
        choices=[],
        usage=None if include_usage else msgspec.UNSET,
        system_fingerprint=served.system_fingerprint,
    )

    def encoded(
        delta: ChatDelta,
        finish_reason: FinishReason | None = None,
        tokens: Sequence[ScoredToken] = (),
    ) -> bytes:
        logprobs = chat_logprobs(served.tokenizer, tokens) if tokens else None
        chunk.choices = [
            ChatChunkChoice(delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        ]
        return msgspec.json.encode(chunk)

    last: TextDelta | None = None
    async with aclosing(deltas):
        async for delta in deltas:
            if last is None:
                yield encoded(ChatDelta(role="assistant", content=""))
            last = delta
            if delta.text or delta.tokens:
                yield encoded(ChatDelta(content=delta.text), tokens=delta.tokens)
            if delta.finish_reason is not None:
                yield encoded(ChatDelta(), delta.finish_reason)
    if include_usage and last is not None:
        chunk.choices = []
        chunk.usage = usage(
            last.num_prompt_tokens, last.num_cached_tokens, last.num_generated_tokens
        )
        yield msgspec.json.encode(chunk)
