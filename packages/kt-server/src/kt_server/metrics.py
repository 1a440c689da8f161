# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: what the server counts, and the engine's own counters at scrape time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

from kt_runtime.core import EngineStats, TokenEvent
from kt_server import __version__
from kt_server.protocols import EngineClient

# From one decode step of a small model to a long prompt on a slow machine.
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# From 500 tokens/s to a model that hardly moves.
_TOKEN_GAP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 10)

# Why a page is lost: what the store calls it. What else is evicted made room.
_LOST_BY = {
    "quota": "quota_evicted_pages",
    "age": "expired_pages",
    "dropped": "dropped_pages",
    "yielded": "yielded_pages",
    "damaged": "damaged_pages",
}


class ServerMetrics:
    """The metrics of one server in a registry of its own, so that two servers do not mix."""

    def __init__(self, engine: EngineClient) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self._requests = Counter(
            "kt_http_requests",
            "HTTP requests by endpoint and status (499: the client left)",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "kt_time_to_first_token_seconds",
            "From the request's arrival at the engine to its first token",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self._registry,
        )
        self._token_gap = Histogram(
            "kt_inter_token_latency_seconds",
            "Between two tokens of one request",
            buckets=_TOKEN_GAP_BUCKETS,
            registry=self._registry,
        )

    def count_request(self, endpoint: str, status: int) -> None:
        """One answered HTTP request. `endpoint` is the route, never the URL: few values only."""
        self._requests.labels(endpoint, str(status)).inc()

    async def timed(
        self, events: AsyncGenerator[TokenEvent, None]
    ) -> AsyncGenerator[TokenEvent, None]:
        """The same events; their tokens are timed in passing."""
        last = time.perf_counter()
        histogram = self._first_token
        async with aclosing(events):
            async for event in events:
                if event.token_id is not None:
                    now = time.perf_counter()
                    histogram.observe(now - last)
                    last, histogram = now, self._token_gap
                yield event

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _chunk_sizes(stats: EngineStats) -> Metric:
    """The sizes of prefill chunks, which the engine counts by powers of two."""
    buckets, count = [], 0
    for size, number in sorted(stats.prefill_chunks.items()):
        count += number
        buckets.append((str(float(size)), float(count)))
    buckets.append(("+Inf", float(count)))
    return HistogramMetricFamily(
        "kt_prefill_chunk_tokens",
        "Tokens of a prompt computed in one step, recomputed ones included",
        buckets=buckets,
        sum_value=stats.prefill_tokens,
    )


def _store_metrics(stats: EngineStats) -> Iterator[Metric]:
    """What the prefix store says of its tiers, under its own names."""
    for family_of, by_tier in (
        (CounterMetricFamily, stats.store_counters),
        (GaugeMetricFamily, stats.store_gauges),
    ):
        for name in sorted({name for values in by_tier.values() for name in values}):
            text = f"{name.replace('_', ' ').capitalize()} of the prefix store, by tier"
            family = family_of(f"kt_prefix_store_{name}", text, labels=["tier"])
            for tier, values in by_tier.items():
                if name in values:
                    family.add_metric([tier], values[name])
            yield family


def _lost_pages(stats: EngineStats) -> Metric:
    """Pages that left the prefix store, by why."""
    family = CounterMetricFamily(
        "kt_prefix_store_lost_pages",
        "Pages that left the prefix store, by tier and reason",
        labels=["tier", "reason"],
    )
    for tier, counts in stats.store_counters.items():
        room = counts.get("evicted_pages", 0) - counts.get("quota_evicted_pages", 0)
        family.add_metric([tier, "room"], room)
        for reason, name in _LOST_BY.items():
            if name in counts:
                family.add_metric([tier, reason], counts[name])
    return family


class _EngineCollector:
    """Reads one snapshot of the engine per scrape. Names follow vLLM's, so that dashboards port."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """What CollectorRegistry asks for."""
        stats = self._engine.stats()
        used = (stats.num_pages - stats.pages_free - stats.pages_cached) / max(1, stats.num_pages)
        gauges = {
            "kt_num_requests_running": ("Requests that hold KV pages", stats.num_running),
            "kt_num_requests_waiting": ("Requests that wait for pages", stats.num_waiting),
            "kt_num_requests_loading": (
                "Running requests that wait for stored KV to be read",
                stats.num_loading,
            ),
            "kt_kv_cache_usage_perc": (
                "Share of KV pages held by running requests, or on their way to disk (0-1)",
                used,
            ),
            "kt_max_inter_token_latency_seconds": (
                "What a step may take by prediction while anything decodes",
                stats.max_itl_s,
            ),
        }
        for name, (text, gauge) in gauges.items():
            yield GaugeMetricFamily(name, text, value=gauge)
        counters = {
            "kt_prompt_tokens": ("Prompt tokens of admitted requests", stats.prompt_tokens),
            "kt_prompt_tokens_cached": (
                "Prompt tokens whose KV was reused instead of computed",
                stats.cached_tokens,
            ),
            "kt_prefill_seconds_saved": (
                "Estimate of how much later first tokens would have come without reused KV: its "
                "tokens times the seconds per token of the fastest prefill step",
                stats.prefill_seconds_saved,
            ),
            "kt_generation_tokens": ("Tokens generated", stats.generated_tokens),
            "kt_num_preemptions": (
                "Times that a running request gave its pages to one served before it",
                stats.preemptions,
            ),
            "kt_engine_steps": ("Forward passes", stats.steps),
            "kt_engine_graph_steps": ("Forward passes replayed from a graph", stats.graph_steps),
        }
        for name, (text, count) in counters.items():
            yield CounterMetricFamily(name, text, value=count)
        yield _chunk_sizes(stats)
        by_phase = {
            "kt_engine_phase_steps": ("Engine steps by what they held", stats.phase_steps),
            "kt_engine_step_seconds": ("Seconds in engine steps", stats.step_seconds),
            "kt_engine_forward_seconds": (
                "Seconds of engine steps in which the model ran",
                stats.forward_seconds,
            ),
        }
        for name, (text, values) in by_phase.items():
            family = CounterMetricFamily(name, text, labels=["phase"])
            for phase, value in values.items():
                family.add_metric([phase], value)
            yield family
        pages = GaugeMetricFamily("kt_kv_pages", "KV pages by what they hold", labels=["state"])
        pages.add_metric(["free"], stats.pages_free)
        pages.add_metric(["cached"], stats.pages_cached)
        pages.add_metric(["used"], stats.pages_used)
        yield pages
        yield from _store_metrics(stats)
        yield _lost_pages(stats)
        finished = CounterMetricFamily(
            "kt_request_finished", "Requests ended, by reason", labels=["finished_reason"]
        )
        for reason, number in stats.finished.items():
            finished.add_metric([reason], number)
        yield finished
        ops = CounterMetricFamily("kt_kernel_ops", "Kernel ops run, by name", labels=["op"])
        for op, number in stats.op_counts.items():
            ops.add_metric([op], number)
        yield ops
        info = GaugeMetricFamily(
            "kt_build_info",
            "1, with what is running in the labels",
            labels=["version", "backend", "kernel_target", "weight_format", "kv_dtype"],
        )
        built = (stats.backend, stats.kernel_target, stats.weight_format, stats.kv_dtype)
        info.add_metric([__version__, *built], 1)
        yield info
