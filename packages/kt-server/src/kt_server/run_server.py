# SPDX-License-Identifier: Apache-2.0
"""Runs an app until a signal says stop, and then drains it. Loads no model and knows no route."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from aiohttp import web

from kt_server.served import SERVED

# What handlers get to send their last event after the engine has ended their requests.
_CLEANUP_S = 2.0


async def run_server(
    app: web.Application, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM, then drain: accept nothing new, let requests in flight finish
    for a while, end the rest. A second signal ends the waiting.

    Args:
        app: made by `create_app`.
        host: address to listen on.
        port: 0 picks a free one.
        announce: called with the URL once requests are accepted.

    Raises:
        OSError: the address cannot be listened on.
    """
    served = app[SERVED]
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=_CLEANUP_S
    )
    await runner.setup()
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        announce(_url(host, runner))
        await stop.wait()
        served.draining = True
        await site.stop()
        await _drained(app, hurry)
    finally:
        await asyncio.to_thread(served.engine.close, "the server is shutting down")
        await runner.cleanup()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _drained(app: web.Application, hurry: asyncio.Event) -> None:
    """Returns when nothing is in flight, when time is up, or on a second signal."""
    served = app[SERVED]
    deadline = asyncio.get_running_loop().time() + served.config.drain_s
    while served.num_in_flight and not hurry.is_set():
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(0.02)


def _url(host: str, runner: web.AppRunner) -> str:
    port = runner.addresses[0][1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
