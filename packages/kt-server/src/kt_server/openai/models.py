# SPDX-License-Identifier: Apache-2.0
"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from aiohttp import web

from kt_server.openai.requests import check_model, json_response
from kt_server.openai.types import Model, ModelList
from kt_server.served import SERVED, Served


async def list_models(request: web.Request) -> web.Response:
    """The handler of GET /v1/models."""
    return json_response(ModelList(data=[_model(request.app[SERVED])]))


async def retrieve_model(request: web.Request) -> web.Response:
    """The handler of GET /v1/models/{id}."""
    served = request.app[SERVED]
    check_model(served, request.match_info["id"])
    return json_response(_model(served))


def _model(served: Served) -> Model:
    max_model_len = served.engine.max_model_len
    return Model(id=served.model_name, created=served.created, max_model_len=max_model_len)
