# SPDX-License-Identifier: Apache-2.0
"""Figures of a load: percentiles and rates out of records. Prints nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kt_server.bench.client import Record


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one kind of time, in milliseconds; all 0 where nothing was measured."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of times in seconds."""
        if not seconds:
            return cls(0.0, 0.0, 0.0)
        mean = sum(seconds) / len(seconds)
        return cls(1e3 * mean, 1e3 * percentile(seconds, 0.5), 1e3 * percentile(seconds, 0.99))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a request must keep to count as good; None asks for nothing.

    Attributes:
        ttft_ms, tpot_ms: most milliseconds to the first token, and per token after it.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def met(self, record: Record) -> bool:
        """Whether an answered request keeps it."""
        tpot = record.tpot or 0.0
        return (self.ttft_ms is None or 1e3 * record.ttft <= self.ttft_ms) and (
            self.tpot_ms is None or 1e3 * tpot <= self.tpot_ms
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """One load on one server.

    Attributes:
        name: of the load.
        concurrency: requests in flight at most.
        num_requests, num_failed: all; those that were not answered to the end. Times and rates are
            of the others.
        errors: how often each error came.
        duration_s: from the first request sent to the last one ended.
        prompt_tokens, cached_tokens, output_tokens: sums.
        output_tokens_per_s, total_tokens_per_s, requests_per_s: over the duration; total counts
            prompts too.
        goodput_per_s: requests per second that met the goal.
        ttft, itl, tpot, latency: see client.py.
    """

    name: str
    concurrency: int
    num_requests: int
    num_failed: int
    errors: dict[str, int]
    duration_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    ttft: Spread
    itl: Spread
    tpot: Spread
    latency: Spread


def summarize(name: str, concurrency: int, records: Sequence[Record], goal: Goal) -> Summary:
    """The figures of at least one record."""
    answered = [record for record in records if record.error is None]
    duration = max(r.ended for r in records) - min(r.sent for r in records)
    prompt_tokens = sum(r.prompt_tokens for r in answered)
    output_tokens = sum(r.output_tokens for r in answered)
    return Summary(
        name=name,
        concurrency=concurrency,
        num_requests=len(records),
        num_failed=len(records) - len(answered),
        errors=dict(Counter(r.error for r in records if r.error is not None)),
        duration_s=duration,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(r.cached_tokens for r in answered),
        output_tokens=output_tokens,
        output_tokens_per_s=output_tokens / duration,
        total_tokens_per_s=(prompt_tokens + output_tokens) / duration,
        requests_per_s=len(answered) / duration,
        goodput_per_s=sum(map(goal.met, answered)) / duration,
        ttft=Spread.of([r.ttft for r in answered]),
        itl=Spread.of([gap for r in answered for gap in r.itl]),
        tpot=Spread.of([r.tpot for r in answered if r.tpot is not None]),
        latency=Spread.of([r.latency for r in answered]),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
