# SPDX-License-Identifier: Apache-2.0
"""Token events to text deltas, and several streams as one. Knows no HTTP and no API's field
names."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeVar

from kt_runtime.core import EngineClosedError, Request, TokenEvent, TokenLogprobs
from kt_runtime.text import Detokenizer
from kt_server.protocols import EngineClient

T = TypeVar("T")
Events = AsyncGenerator[TokenEvent, None]
Watch = Callable[[Events], Events]


class GenerationError(RuntimeError):
    """A request ended without an answer because computing it failed. The message says why."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer: the character at which its text begins, and its log probability."""

    offset: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer.

    Attributes:
        text: new text; may be empty in the last delta.
        finish_reason: set in the last delta, and only there.
        num_prompt_tokens, num_cached_tokens, num_generated_tokens: usage so far.
        tokens: where log probabilities are asked for, the tokens whose text ends in this delta;
            those that a stop string cut off are in none.
        prompt_logprobs: where asked for, in the first delta.
    """

    text: str
    finish_reason: Literal["stop", "length"] | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    tokens: tuple[ScoredToken, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


class _TokenLine:
    """Scored tokens whose text is not out yet, in order."""

    def __init__(self) -> None:
        self._line: deque[tuple[ScoredToken, int]] = deque()

    def push(self, start: int, end: int, logprobs: TokenLogprobs) -> None:
        """The next token; its text is characters start … end - 1, none where it only begins or
        continues a character."""
        self._line.append((ScoredToken(start, logprobs), end))

    def ready(self, num_characters: int) -> tuple[ScoredToken, ...]:
        """Tokens whose text lies in the first `num_characters`. One without text waits for the
        next, which it belongs to."""
        count = 0
        for place, (token, end) in enumerate(self._line, start=1):
            if end > num_characters:
                break
            if end > token.offset:
                count = place
        return tuple(self._line.popleft()[0] for _ in range(count))

    def before(self, num_characters: int) -> tuple[ScoredToken, ...]:
        """The rest of a text that was cut: tokens that begin in its first `num_characters`."""
        return tuple(token for token in self.rest() if token.offset < num_characters)

    def rest(self) -> tuple[ScoredToken, ...]:
        """All that are left."""
        tokens = tuple(token for token, _ in self._line)
        self._line.clear()
        return tokens


async def text_deltas(
    engine: EngineClient, request: Request, detokenizer: Detokenizer, watch: Watch = lambda e: e
) -> AsyncGenerator[TextDelta, None]:
    """Runs a request: its text as it comes; tokens that complete no text yield nothing.

    A stop string ends the request in the engine, as "stop"; closing this does, as "abort".

    Args:
        engine, request: who computes what.
        detokenizer: a fresh one, with the request's stop strings.
        watch: passes the engine's events on, and may look at them.

    Raises:
        GenerationError: the engine ended the request with "error".
        EngineClosedError: with "abort", which a reader only sees of an engine that was closed.
    """
    line = _TokenLine()
    prompt_logprobs = None
    num_characters = 0  # given out
    async with aclosing(watch(engine.generate(request))) as events:
        async for event in events:
            prompt_logprobs = event.prompt_logprobs or prompt_logprobs
            reason = event.finish_reason
            if reason == "error":
                raise GenerationError(event.error or "the engine ended the request")
            if reason == "abort":
                raise EngineClosedError(event.error or "the engine ended the request")
            # The id that ended the request (end of sequence, stop_token_ids) is no part of the
            # text.
            ended_by_token = reason == "stop"
            text = ""
            if event.token_id is not None:
                start = num_characters + detokenizer.num_held
                text = "" if ended_by_token else detokenizer.feed(event.token_id)
                end = num_characters + len(text) + detokenizer.num_held
                if event.logprobs is not None:
                    line.push(start, end, event.logprobs)
            if reason is not None:
                text += detokenizer.finish()
            if detokenizer.stopped is not None:
                if reason is None:  # the engine reads no text
                    engine.abort(request.request_id, "stop")
                reason = "stop"
            num_characters += len(text)
            if detokenizer.stopped is not None:
                tokens = line.before(num_characters)
            else:
                tokens = line.ready(num_characters) if reason is None else line.rest()
            if text or tokens or reason is not None:
                yield TextDelta(
                    text,
                    reason,
                    event.num_prompt_tokens,
                    event.num_cached_tokens,
                    event.num_generated_tokens,
                    tokens,
                    prompt_logprobs,
                )
                prompt_logprobs = None
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
