# SPDX-License-Identifier: Apache-2.0
"""The nouns everyone shares: SamplingParams, Request, TokenEvent, EngineStats and the errors of
`Engine.add`.

Plain data; no torch, no behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen from logits, and when to stop.

    Attributes:
        max_tokens: most tokens to generate; None means up to the end of the context.
        temperature: logits are divided by it; 0 means greedy (argmax, lowest id on ties).
        top_p: keep the smallest set of most probable tokens whose probabilities sum to at least
            this; 1 is off.
        top_k: keep the k most probable tokens; 0 is off.
        min_p: drop tokens less probable than min_p times the most probable one; 0 is off.
        seed: key of the request's own counter-based random numbers; None draws a fresh one. Equal
            seeds give equal tokens whatever else runs in the batch.
        stop: strings that end the text (not part of it), or one string. Matched on text, after the
            engine. Kept as a tuple, as stop_token_ids are.
        stop_token_ids: token ids that end the request, besides the model's own end-of-sequence ids.
        ignore_eos: do not stop at the model's end-of-sequence ids.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        def check(ok: bool, rule: str, got: object) -> None:
            if not ok:
                raise ValueError(f"[sampling] {rule}; got {got!r}")

        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            check(_is_number(value), f"{name} must be a number", value)
        for name in ("max_tokens", "top_k", "seed"):
            value = getattr(self, name)
            optional = name != "top_k" and value is None
            check(optional or is_whole(value), f"{name} must be a whole number", value)
        length_ok = self.max_tokens is None or self.max_tokens >= 1
        check(length_ok, "max_tokens must be at least 1", self.max_tokens)
        temperature_ok = 0.0 <= self.temperature <= 100.0
        check(temperature_ok, "temperature must lie in [0, 100]", self.temperature)
        check(0.0 < self.top_p <= 1.0, "top_p must lie in (0, 1]", self.top_p)
        check(self.top_k >= 0, "top_k must be at least 0 (0 is off)", self.top_k)
        check(0.0 <= self.min_p <= 1.0, "min_p must lie in [0, 1]", self.min_p)
        # Read as a sequence, one string would stop at each of its characters.
        stop = (self.stop,) if isinstance(self.stop, str) else _as_tuple(self.stop)
        check(all(isinstance(s, str) for s in stop), "stop must be strings", self.stop)
        check(all(stop), "stop strings must not be empty", self.stop)
        stop_ids = _as_tuple(self.stop_token_ids)
        check(all(map(is_whole, stop_ids)), "stop_token_ids must be ids", self.stop_token_ids)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", stop_ids)


def is_whole(value: object) -> bool:
    """Whether it counts something: an int of Python's or numpy's, and not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


@dataclass(frozen=True, slots=True)
class Request:
    """One generation job, as token ids. Immutable; progress lives in the scheduler's Sequence.

    Attributes:
        request_id: unique among requests in flight.
        prompt_token_ids: at least one id, each in [0, vocab_size).
        sampling: how tokens are chosen and when generation ends.
        tenant: prefix pages are shared only among requests of one tenant; None is the common one.
        return_logits: compute logits of every prompt position and generate nothing; bypasses prefix
            reuse, since a reused position has no logits. Read them with `Engine.take_logits`.
        chunk_size: most prompt tokens of this request computed in one step; None leaves it to the
            scheduler.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tenant: str | None = None
    return_logits: bool = False
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's news about one request. Ids only: text is made after the engine.

    Exactly one event per request carries a finish_reason, and it is the last.

    Attributes:
        token_id: the new token, or None (a finish without a token: abort, error, logits request).
            The id that ended the request (end of sequence, stop_token_ids) is reported too, with
            finish_reason "stop". A logits request ends with "length".
        num_prompt_tokens, num_cached_tokens, num_generated_tokens: usage so far; cached = prompt
            tokens whose KV was reused instead of computed.
        error: why, when finish_reason is "error", or "abort" because the engine was closed.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of one engine. Counters count from its start.

    Attributes:
        num_running, num_waiting: requests that hold pages; requests that do not yet.
        num_pages, pages_free, pages_cached, pages_used: KV pages in all; holding nothing; holding
            reusable prefixes that no request uses (evictable); held by running requests.
        steps, graph_steps: forward passes in all; those replayed from a recorded graph.
        prompt_tokens, cached_tokens, generated_tokens: of all requests admitted so far.
        finished: requests ended, by finish_reason.
        backend, kernel_target: "kt" or "torch"; the instruction set in use ("avx2", …; "torch").
        weight_format: as asked for.
        weight_formats: what each kind of matrix was packed to: {"experts": "int4", …}.
        kv_dtype: as resolved.
        op_counts: how often each kernel op ran; empty for the torch backend.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    pages_free: int
    pages_cached: int
    pages_used: int
    steps: int
    graph_steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finished: Mapping[str, int]
    backend: str
    kernel_target: str
    weight_format: str
    weight_formats: Mapping[str, str]
    kv_dtype: str
    op_counts: Mapping[str, int]


class ContextLengthError(ValueError):
    """The request cannot fit the context or the page pool. Carries both numbers for the API's
    error."""

    def __init__(self, num_tokens: int, max_model_len: int, what: str) -> None:
        super().__init__(f"[engine.add] {what} must fit {max_model_len} tokens; got {num_tokens}")
        self.num_tokens = num_tokens
        self.max_model_len = max_model_len


class QueueFullError(RuntimeError):
    """Too many requests are waiting; try again later. Carries the limit."""

    def __init__(self, max_waiting: int) -> None:
        super().__init__(f"[engine.add] at most {max_waiting} requests may wait; the queue is full")
        self.max_waiting = max_waiting


class EngineClosedError(RuntimeError):
    """The engine was closed or its thread died; the message says which. Not silence."""
