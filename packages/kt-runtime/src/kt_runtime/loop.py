# SPDX-License-Identifier: Apache-2.0
"""The engine's threads and the only asyncio bridge: one wake-up of the event loop per step, not per
token."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING

from kt_runtime.core import Request, TokenEvent
from kt_runtime.exec.aside import Aside

if TYPE_CHECKING:
    from kt_runtime.engine import Engine

_log = logging.getLogger(__name__)

_Delivery = tuple["_Stream", TokenEvent]


class _Stream:
    """One request's way back to the event loop that asked."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[TokenEvent] = asyncio.Queue()


class EngineLoop:
    """Steps an engine in its own thread while it has work; sleeps otherwise. A second thread books
    each step and hands out its events while the next one computes.

    The threads end when the engine is closed. If stepping raises, the engine is closed with that
    reason and every waiting request gets a last event with finish_reason "error".
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._latest: dict[str, TokenEvent] = {}
        # A daemon, so that a program that forgot close() can still exit; closed before the
        # interpreter goes, because a thread that returns from a kernel after that aborts it.
        self._thread = threading.Thread(target=self._run, name="kt-engine", daemon=True)
        self._thread.start()
        atexit.register(engine.close, "the program ended")

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """The request's events; see `Engine.generate`."""
        stream = _Stream()
        request_id = request.request_id
        # Registered and added in one go, else the first events could find no stream.
        with self._lock:
            self._engine.add(request)
            self._streams[request_id] = stream
            self._latest[request_id] = TokenEvent(
                request_id, None, None, len(request.prompt_token_ids), 0, 0
            )
        finished = False
        try:
            while not finished:
                event = await stream.events.get()
                finished = event.finish_reason is not None
                yield event
        finally:
            if not finished:
                with self._lock:
                    self._forget(request_id, stream)
                self._engine.abort(request_id)

    def join(self) -> None:
        """Wait for the thread to end; the engine must have been closed. Not from the thread
        itself."""
        atexit.unregister(self._engine.close)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        engine = self._engine
        aside = Aside("kt-engine-aside")
        with engine.stepping:
            try:
                while engine.closed_reason is None or engine.has_work:
                    engine.step_overlapped(aside, self._deliver)
                    engine.wait_for_work()
            except BaseException as error:  # reported to every waiting request and in the log
                _log.exception("the engine's thread died")
                reason = f"the engine's thread died: {type(error).__name__}: {error}"
                engine.refuse(reason)
                self._fail_all(reason)
                # After that: the store may wait for its disk, or be what broke.
                engine.close(reason)
            finally:
                aside.close()

    def _deliver(self, events: list[TokenEvent]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Delivery]] = {}
        with self._lock:
            for event in events:
                stream = self._streams.get(event.request_id)
                if stream is None:
                    continue  # its reader left; the abort is on its way
                by_loop.setdefault(stream.loop, []).append((stream, event))
                if event.finish_reason is None:
                    self._latest[event.request_id] = event
                else:
                    self._forget(event.request_id, stream)
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, deliveries)
            except RuntimeError:  # the event loop was closed with requests in flight
                for _, event in deliveries:
                    self._engine.abort(event.request_id)

    def _forget(self, request_id: str, stream: _Stream) -> None:
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            del self._latest[request_id]

    def _fail_all(self, reason: str) -> None:
        with self._lock:
            latest = list(self._latest.values())
        self._deliver(
            [replace(event, token_id=None, finish_reason="error", error=reason) for event in latest]
        )


def _put_all(deliveries: list[_Delivery]) -> None:
    for stream, event in deliveries:
        stream.events.put_nowait(event)
