# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: one answer as a stream of `data:` lines. Knows nothing of what is in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from kt_server.errors import as_api_error

_KEEPALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"


async def send_events(
    request: web.Request, events: AsyncGenerator[bytes, None], keepalive_s: float
) -> web.StreamResponse:
    """Answer with `events`, then `[DONE]`.

    Headers go out with the first event, so that an error before it still gets its own status, or
    after `keepalive_s` at the latest; from then on silence is filled with comments. An error after
    that becomes an event in OpenAI's shape. If the client leaves, `events` is closed.
    """
    stream = _EventStream(request)
    keepalive = asyncio.create_task(stream.keep_alive(keepalive_s))
    try:
        async with aclosing(events):
            try:
                async for event in events:
                    await stream.write(b"data: " + event + b"\n\n")
            except ConnectionError:
                raise
            except Exception as error:
                if not stream.response.prepared:
                    raise
                await stream.write(b"data: " + as_api_error(error).body() + b"\n\n")
        await stream.write(_DONE)
        await stream.response.write_eof()
    except ConnectionError:
        pass  # the client left between two events; aiohttp has closed the connection
    finally:
        keepalive.cancel()
        await asyncio.gather(keepalive, return_exceptions=True)
    return stream.response


class _EventStream:
    """The response, written to by the events and by the keep-alive, one at a time."""

    def __init__(self, request: web.Request) -> None:
        # Proxies must pass events on as they come: nginx buffers unless told otherwise.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self.response = web.StreamResponse(headers=headers)
        self.response.content_type = "text/event-stream"
        self.response.charset = "utf-8"
        self._request = request
        self._lock = asyncio.Lock()
        self._last_write = asyncio.get_running_loop().time()

    async def write(self, data: bytes) -> None:
        """Send one event or comment; the first one sends the headers."""
        async with self._lock:
            if not self.response.prepared:
                await self.response.prepare(self._request)
            await self.response.write(data)
            self._last_write = asyncio.get_running_loop().time()

    async def keep_alive(self, interval_s: float) -> None:
        """Runs beside the events: a comment whenever nothing was sent for `interval_s`."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._last_write + interval_s - now())
            if now() >= self._last_write + interval_s:
                await self.write(_KEEPALIVE)
