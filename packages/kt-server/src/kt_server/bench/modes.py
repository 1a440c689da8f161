# SPDX-License-Identifier: Apache-2.0
"""The loads that `kt bench` puts on a server: which requests, how many at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from kt_server.bench.choices import Mode
from kt_server.bench.client import BenchClient, Record
from kt_server.bench.engine_times import DecodeTimes, EngineTimes
from kt_server.bench.prompts import PromptMaker
from kt_server.bench.summary import Goal, Summary, summarize

# A warm-up is short: it is there for connections, recorded graphs and code that loads on first use.
_WARM_UP_TOKENS = 8
# How much of a prompt is its own in prefix mode; the rest is shared.
_OWN_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loads have in common.

    Attributes:
        input_tokens, output_tokens: of each request.
        num_requests: of each load, at least one per stream.
        concurrency: streams of each load in concurrency mode; throughput takes the largest.
        seed: of the prompts.
        goal: what goodput counts.
    """

    input_tokens: int = 256
    output_tokens: int = 64
    num_requests: int = 16
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    seed: int = 0
    goal: Goal = field(default_factory=Goal)


@dataclass(frozen=True, slots=True)
class Result:
    """A load's figures and what they are made of.

    Attributes:
        decode: the engine's own account of its decode steps during the load; None where the server
            gives none.
    """

    summary: Summary
    records: Sequence[Record]
    decode: DecodeTimes | None


class Bench:
    """Runs modes on one server.

    Args:
        client: asks it.
        engine_times: reads its own account of its time.
        settings: of all loads.
    """

    def __init__(self, client: BenchClient, engine_times: EngineTimes, settings: Settings) -> None:
        self._client = client
        self._engine_times = engine_times
        self._settings = settings
        self._prompts = PromptMaker(settings.seed)

    async def run(self, mode: Mode) -> AsyncIterator[Result]:
        """The results of a mode's loads, each when it is there.

        Raises:
            RuntimeError: the server does not answer at all.
        """
        settings = self._settings
        await self._prompts.calibrate(self._client, settings.input_tokens)
        if mode == "prefix":
            async for result in self._prefix():
                yield result
            return
        levels = {
            "latency": (1,),
            "throughput": (max(settings.concurrency),),
            "concurrency": settings.concurrency,
        }
        for concurrency in levels[mode]:
            count = max(settings.num_requests, concurrency)
            prompts = [self._prompts.prompt(settings.input_tokens) for _ in range(count)]
            await self._warm_up(concurrency)
            yield await self._load(mode, prompts, concurrency)

    async def _prefix(self) -> AsyncIterator[Result]:
        """Prompts that share their beginning: the first computes it, the others may reuse it."""
        settings = self._settings
        own = max(1, round(settings.input_tokens * _OWN_SHARE))
        shared = self._prompts.prompt(max(1, settings.input_tokens - own))
        prompts = [f"{shared} {self._prompts.prompt(own)}" for _ in range(settings.num_requests)]
        await self._warm_up(1)
        yield await self._load("prefix cold", prompts[:1], 1)
        if len(prompts) > 1:
            yield await self._load("prefix warm", prompts[1:], 1)

    async def _warm_up(self, concurrency: int) -> None:
        prompts = [self._prompts.prompt(_WARM_UP_TOKENS) for _ in range(concurrency)]
        await asyncio.gather(*(self._client.ask(each, _WARM_UP_TOKENS) for each in prompts))

    async def _load(self, name: str, prompts: Sequence[str], concurrency: int) -> Result:
        """All prompts, at most `concurrency` in flight; one that ends makes room for the next."""
        before = await self._engine_times.read()
        waiting = iter(prompts)

        async def stream() -> list[Record]:
            return [await self._client.ask(p, self._settings.output_tokens) for p in waiting]

        streams = await asyncio.gather(*(stream() for _ in range(concurrency)))
        records = sorted(itertools.chain(*streams), key=lambda record: record.sent)
        after = await self._engine_times.read()
        decode = None if before is None or after is None else after - before
        summary = summarize(name, concurrency, records, self._settings.goal)
        return Result(summary, records, decode)
