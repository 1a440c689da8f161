# SPDX-License-Identifier: Apache-2.0
"""The HTTP application: routes, request ids, the log line of each request. No API's fields here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler

from kt_runtime.text import ChatTemplate, Tokenizer
from kt_server.errors import CLIENT_LEFT, error_middleware, unavailable
from kt_server.metrics import ServerMetrics
from kt_server.openai.chat import create_chat_completion
from kt_server.openai.completions import create_completion
from kt_server.openai.models import list_models, retrieve_model
from kt_server.protocols import EngineClient
from kt_server.served import SERVED, Served, ServerConfig

_log = logging.getLogger("kt_server.access")

_REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # anything longer is no id
_REQUEST_ID_KEY = web.RequestKey("request_id", str)


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    model_name: str,
    config: ServerConfig | None = None,
) -> web.Application:
    """The server of one model; the caller closes the engine.

    Run it with `handler_cancellation=True`, else requests go on when their client has left.
    """
    config = config or ServerConfig()
    app = web.Application(
        client_max_size=config.max_body_bytes,
        middlewares=[_account_middleware, error_middleware],
    )
    app[SERVED] = Served(
        engine, tokenizer, chat_template, model_name, config, ServerMetrics(engine)
    )
    app.on_response_prepare.append(_add_request_id)
    app.router.add_post("/v1/chat/completions", create_chat_completion)
    app.router.add_post("/v1/completions", create_completion)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{id:.+}", retrieve_model)
    app.router.add_get("/health", _health)
    app.router.add_get("/metrics", _metrics)
    return app


async def _health(request: web.Request) -> web.Response:
    """200 while requests are taken; 503 with the reason when the engine died or is stopping."""
    served = request.app[SERVED]
    if (reason := served.engine.closed_reason) is not None:
        raise unavailable(reason, "engine_closed")
    if served.draining:
        raise unavailable("the server is shutting down", "shutting_down")
    return web.json_response({"status": "ok", "model": served.model_name})


async def _metrics(request: web.Request) -> web.Response:
    body = request.app[SERVED].metrics.exposition()
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=body, headers=headers)


@web.middleware
async def _account_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id; counts and logs it when it has ended, however it ended."""
    served = request.app[SERVED]
    given = request.headers.get(_REQUEST_ID_HEADER, "")
    request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    request[_REQUEST_ID_KEY] = request_id
    started = time.perf_counter()
    status = CLIENT_LEFT
    served.num_in_flight += 1
    try:
        response = await handler(request)
        status = response.status
        return response
    except asyncio.CancelledError:
        raise  # the client left, or the server was told to stop at once
    finally:
        served.num_in_flight -= 1
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "unknown"
        served.metrics.count_request(endpoint, status)
        seconds = time.perf_counter() - started
        _log.info("%s %s %d %.3f s id=%s", request.method, endpoint, status, seconds, request_id)


async def _add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    if _REQUEST_ID_KEY in request:
        response.headers[_REQUEST_ID_HEADER] = request[_REQUEST_ID_KEY]
