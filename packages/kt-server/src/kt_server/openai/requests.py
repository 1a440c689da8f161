# SPDX-License-Identifier: Apache-2.0
"""From an HTTP request to engine requests: decode, refuse what is unsupported, apply defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from kt_runtime.core import ContextLengthError, InvalidFieldError, Request, SamplingParams
from kt_server.errors import ApiError, invalid_json, unavailable
from kt_server.openai.types import GenerationRequest, PromptTokensDetails, Usage
from kt_server.served import SERVED, Served

R = TypeVar("R", bound=GenerationRequest)

# Field → the values that ask for nothing. Null never does.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "prompt_logprobs": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "tools": ([],),
    "functions": ([],),
    "modalities": (["text"],),
    "audio": (),
    "continue_final_message": (False,),
    "chat_template": (),
    "documents": ([],),
    "suffix": ("",),
}


async def read_request(http_request: web.Request, type: type[R]) -> R:
    """Decode and check the body of a generation request.

    Raises:
        ApiError: 400 for anything wrong with it, 404 for another model's name, 413 for its size,
            503 while the server shuts down.
    """
    served = http_request.app[SERVED]
    if served.draining:
        raise unavailable("the server is shutting down", "shutting_down")
    limit = served.config.max_body_bytes
    if (http_request.content_length or 0) > limit:  # before any of it is read
        raise web.HTTPRequestEntityTooLarge(limit, http_request.content_length or 0)
    try:
        body = await http_request.read()
    except web.RequestPayloadError as error:  # not in the encoding that its header says
        message = f"the body must be readable; got {error}"
        # aiohttp cannot find the next request behind such a body.
        headers = {"Connection": "close"}
        raise ApiError(400, message, code="invalid_body", headers=headers) from None
    try:
        request = msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_json(error) from None
    check_model(served, request.model)
    for name, harmless in UNSUPPORTED.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            message = f"{name} is not supported by this server; got {value!r:.100}"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    return request


def check_model(served: Served, name: str) -> None:
    """Raises ApiError 404 unless `name` is the served model's."""
    if name != served.model_name:
        message = f"model must be {served.model_name!r}, the one served here; got {name!r:.200}"
        raise ApiError(404, message, param="model", code="model_not_found")


def encode(served: Served, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a prompt that may fit the context. Blocking; call it in a thread.

    Args:
        param: the field that the text came in, for errors.

    Raises:
        ApiError: 400, the text is too long even if all its tokens were the longest there is.
            Encoding it just to count would take minutes for the largest bodies.
    """
    most = served.engine.max_model_len * served.tokenizer.max_token_length
    if len(text) > most:
        rule = f"the prompt must fit {served.engine.max_model_len} tokens"
        message = f"{rule}, at most {most} characters; got {len(text)} characters"
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return served.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def sampling_params(
    served: Served,
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The request's settings over the checkpoint's. What the APIs call differently comes apart.

    Raises:
        ApiError: 400, a value is out of range.
    """
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    try:
        return served.config.sampling_defaults.params(
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            seed=request.seed,
            stop=stop,
            stop_token_ids=request.stop_token_ids or [],
            ignore_eos=bool(request.ignore_eos),
            min_tokens=request.min_tokens,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            logit_bias=request.logit_bias,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
    except InvalidFieldError as error:
        raise ApiError(400, str(error), param=error.field) from None


def engine_request(
    served: Served,
    request_id: str,
    prompt_token_ids: Sequence[int],
    sampling: SamplingParams,
    body: GenerationRequest,
    param: str,
    tenant: str | None,
) -> Request:
    """One request that the engine will take unless it is full.

    Args:
        body: what it came from; its priority is taken.
        param: the field that the prompt came in, for errors.
        tenant: whose prefixes it may meet.

    Raises:
        ApiError: 400, the prompt is empty, too long, or holds unknown ids; or a field has a value
            that the engine does not take.
    """
    request = Request(
        request_id,
        tuple(prompt_token_ids),
        sampling,
        tenant=tenant,
        priority=body.priority or 0,
    )
    try:
        served.engine.validate(request)
    except ContextLengthError as error:
        code = "context_length_exceeded"
        raise ApiError(400, str(error), param=param, code=code) from None
    except InvalidFieldError as error:
        raise ApiError(400, str(error), param=error.field) from None
    except ValueError as error:
        raise ApiError(400, str(error), param=param) from None
    return request


def json_response(content: msgspec.Struct) -> web.Response:
    """A 200 with `content` as JSON."""
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


def usage(num_prompt_tokens: int, num_cached_tokens: int, num_generated_tokens: int) -> Usage:
    """OpenAI's account of a request's tokens."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_generated_tokens,
        total_tokens=num_prompt_tokens + num_generated_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
    )
