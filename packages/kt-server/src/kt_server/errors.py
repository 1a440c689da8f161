# SPDX-License-Identifier: Apache-2.0
"""Errors in OpenAI's shape: what clients see of anything that goes wrong. Never a stack trace."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from kt_runtime.core import ContextLengthError, EngineClosedError, QueueFullError
from kt_server.generation import GenerationError

_log = logging.getLogger(__name__)

# A queue that is full now has room again when some running requests end: seconds, not minutes.
_RETRY_AFTER_S = 5
# nginx's status for a client that closed the connection; only logs and metrics see it.
CLIENT_LEFT = 499

_PATH_IN_MESSAGE = re.compile(r" - at (?:`key` in )?`\$\.?(.*?)(?:\[\.\.\.\])?`$")
_FIELD_IN_MESSAGE = re.compile(r"required field `(\w+)`")


class ApiError(Exception):
    """An answer with an error status.

    Attributes:
        status: HTTP status.
        type: OpenAI's class of error, e.g. "invalid_request_error".
        param: the field that is at fault, e.g. "messages[0].content".
        code: OpenAI's machine-readable cause, e.g. "model_not_found".
        headers: additional response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON object, also sent as an event when a stream breaks."""
        error = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def response(self) -> web.Response:
        """The whole answer."""
        return web.Response(
            status=self.status,
            body=self.body(),
            content_type="application/json",
            headers=self.headers,
        )


def unavailable(message: str, code: str) -> ApiError:
    """503 with a hint when to try again."""
    headers = {"Retry-After": str(_RETRY_AFTER_S)}
    return ApiError(503, message, type="server_error", code=code, headers=headers)


def invalid_json(error: Exception) -> ApiError:
    """400 for a body that is not JSON or not of the right types; names the field."""
    if isinstance(error, RecursionError):
        return ApiError(400, "the body must not be nested so deeply", code="invalid_json")
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return ApiError(400, f"the body must be JSON; got: {message}", code="invalid_json")
    match = _PATH_IN_MESSAGE.search(message) or _FIELD_IN_MESSAGE.search(message)
    return ApiError(400, message, param=match[1] if match and match[1] else None)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about `error`; unexpected ones are logged and kept from it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, QueueFullError):
        return unavailable(str(error), "queue_full")
    if isinstance(error, EngineClosedError):
        return unavailable(str(error), "engine_closed")
    if isinstance(error, GenerationError):
        return ApiError(500, str(error), type="server_error", code="generation_failed")
    if isinstance(error, web.HTTPException):
        return _from_http(error)
    _log.error("unexpected error", exc_info=error)
    message = "an unexpected error occurred; the server's log has it"
    return ApiError(500, message, type="server_error", code="internal_error")


def _from_http(error: web.HTTPException) -> ApiError:
    """aiohttp's own refusals: unknown path, wrong method, body too large."""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(413, f"the body is too large: {error.text}", code="body_too_large")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"method must be one of {allowed}; got {error.method}"
        return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    if error.status == 404:
        return ApiError(404, "no such path", code="not_found")
    return ApiError(error.status, error.reason)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers in OpenAI's shape whatever a handler raises."""
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response(status=CLIENT_LEFT)  # nobody reads it; the metrics count it
    except Exception as error:
        return as_api_error(error).response()
