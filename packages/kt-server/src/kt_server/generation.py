# SPDX-License-Identifier: Apache-2.0
"""Token events to text deltas, and several streams as one. Knows no HTTP and no API's field
names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeVar

from kt_runtime.core import EngineClosedError, TokenEvent
from kt_runtime.text import Detokenizer

T = TypeVar("T")


class GenerationError(RuntimeError):
    """A request ended without an answer because computing it failed. The message says why."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer.

    Attributes:
        text: new text; may be empty in the last delta.
        finish_reason: set in the last delta, and only there.
        num_prompt_tokens, num_cached_tokens, num_generated_tokens: usage so far.
    """

    text: str
    finish_reason: Literal["stop", "length"] | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int


async def text_deltas(
    events: AsyncGenerator[TokenEvent, None], detokenizer: Detokenizer
) -> AsyncGenerator[TextDelta, None]:
    """The text of one request as it comes; tokens that complete no text yield nothing.

    A stop string ends the request: closing `events` aborts it in the engine.

    Raises:
        GenerationError: the engine ended the request with "error".
        EngineClosedError: with "abort", which a reader only sees of an engine that was closed.
    """
    async with aclosing(events):
        async for event in events:
            reason = event.finish_reason
            if reason == "error":
                raise GenerationError(event.error or "the engine ended the request")
            if reason == "abort":
                raise EngineClosedError(event.error or "the engine ended the request")
            # The id that ended the request (end of sequence, stop_token_ids) is no part of the
            # text.
            ended_by_token = reason == "stop"
            text = ""
            if event.token_id is not None and not ended_by_token:
                text = detokenizer.feed(event.token_id)
            if reason is not None:
                text += detokenizer.finish()
            if detokenizer.stopped is not None:
                reason = "stop"
            if text or reason is not None:
                yield TextDelta(
                    text,
                    reason,
                    event.num_prompt_tokens,
                    event.num_cached_tokens,
                    event.num_generated_tokens,
                )
            if reason is not None:
                return


async def interleave(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Items of several streams as they come, each with the index of its stream.

    The first stream to raise ends all. Closing this closes every stream.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((index, item))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
