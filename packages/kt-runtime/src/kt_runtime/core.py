# SPDX-License-Identifier: Apache-2.0
"""The nouns everyone shares: SamplingParams, Request, TokenEvent, TokenLogprobs, EngineStats and
the errors of `Engine.add`.

Plain data; no torch, no behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


class InvalidFieldError(ValueError):
    """A field of a request has a value that it must not have. Carries the field's name for the
    API's error."""

    def __init__(self, where: str, field: str, rule: str, got: object) -> None:
        super().__init__(f"[{where}] {field} {rule}; got {got!r:.200}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen from logits, and when to stop.

    Attributes:
        max_tokens: most tokens to generate; None means up to the end of the context; 0 computes the
            prompt and generates nothing.
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
        min_tokens: until so many are generated, neither end-of-sequence ids nor stop_token_ids can
            be chosen, and stop strings end nothing.
        presence_penalty, frequency_penalty: taken off the logit of every token of the output so
            far; once, and once per occurrence. Negative ones encourage; 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of every token of prompt
            and output; above 1 discourages; 1 is off.
        logit_bias: added to the logits of these ids, each in [-100, 100]. Copied.
        logprobs: report each generated token's log probability and so many of the most probable
            tokens beside it, at most 20; None reports nothing. Of the model's own logits, before
            bias, penalties and temperature.
        prompt_logprobs: the same of every prompt token but the first; bypasses prefix reuse.
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
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, rule: str, got: object) -> None:
            if not ok:
                raise InvalidFieldError("sampling", name, rule, got)

        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            check(_is_number(value), name, "must be a number", value)
            check(low <= value <= high, name, f"must lie in [{low:g}, {high:g}]", value)
        for name in ("top_p", "repetition_penalty"):
            value = getattr(self, name)
            check(_is_number(value), name, "must be a number", value)
        check(0.0 < self.top_p <= 1.0, "top_p", "must lie in (0, 1]", self.top_p)
        penalty = self.repetition_penalty
        # Beyond this a penalised float32 logit would overflow.
        check(0.01 <= penalty <= 100, "repetition_penalty", "must lie in [0.01, 100]", penalty)
        for name in ("max_tokens", "top_k", "seed", "min_tokens", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            optional = name not in ("top_k", "min_tokens") and value is None
            check(optional or is_whole(value), name, "must be a whole number", value)
            if value is not None and name != "seed":
                rule = "must be at least 0 (0 is off)" if name == "top_k" else "must be at least 0"
                check(value >= 0, name, rule, value)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name) or 0
            check(value <= MAX_LOGPROBS, name, f"must be at most {MAX_LOGPROBS}", value)
        if self.max_tokens is not None:
            rule = f"must be at most max_tokens ({self.max_tokens})"
            check(self.min_tokens <= self.max_tokens, "min_tokens", rule, self.min_tokens)
        # Read as a sequence, one string would stop at each of its characters.
        stop = (self.stop,) if isinstance(self.stop, str) else _as_tuple(self.stop)
        check(all(isinstance(s, str) for s in stop), "stop", "must be strings", self.stop)
        check(all(stop), "stop", "strings must not be empty", self.stop)
        stop_ids = _as_tuple(self.stop_token_ids)
        check(all(map(is_whole, stop_ids)), "stop_token_ids", "must be ids", self.stop_token_ids)
        check(
            isinstance(self.logit_bias, Mapping), "logit_bias", "must be a mapping", self.logit_bias
        )
        bias = dict(self.logit_bias)
        ids_ok = all(is_whole(i) and i >= 0 for i in bias)
        check(ids_ok, "logit_bias", "must be by token id", bias)
        values_ok = all(_is_number(value) and -100 <= value <= 100 for value in bias.values())
        check(values_ok, "logit_bias", "values must lie in [-100, 100]", bias)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", stop_ids)
        object.__setattr__(self, "logit_bias", bias)


# OpenAI's limit, and what clients ask for at most: each more is a line per token in every answer.
MAX_LOGPROBS = 20

_RANGES = {
    "temperature": (0, 100),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


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
        priority: lower ones are served first, equal ones in order of arrival; other than 0 only
            under schedule_policy "priority".
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tenant: str | None = None
    return_logits: bool = False
    chunk_size: int | None = None
    priority: int = 0

    @property
    def generates(self) -> bool:
        """Whether tokens are to be chosen, not only the prompt to be computed."""
        return not self.return_logits and self.sampling.max_tokens != 0

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether logits of every prompt position are needed, so that none may be reused."""
        return self.return_logits or self.sampling.prompt_logprobs is not None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's natural log probability under the model, and the most probable tokens beside it.

    Attributes:
        token_id, logprob: of the token itself.
        top: (id, logprob) of the most probable tokens, best first, ties by id; as many as asked
            for. The token itself is among them only if it is one of them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's news about one request. Ids only: text is made after the engine.

    Exactly one event per request carries a finish_reason, and it is the last.

    Attributes:
        token_id: the new token, or None (a finish without a token: abort, error, nothing to
            generate). The id that ended the request (end of sequence, stop_token_ids) is reported
            too, with finish_reason "stop". A request that generates nothing ends with "length".
        num_prompt_tokens, num_cached_tokens, num_generated_tokens: usage so far; cached = prompt
            tokens whose KV was reused instead of computed.
        error: why, when finish_reason is "error", or "abort" because the engine was closed.
        logprobs: of the new token, where asked for.
        prompt_logprobs: in the first event, where asked for: one per prompt token, None for the
            first, before which there is nothing.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    error: str | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of one engine. Counters count from its start.

    Attributes:
        num_running, num_waiting: requests that hold pages; requests that do not yet.
        num_loading: those of the running ones that wait for stored KV to be read.
        num_pages, pages_free, pages_cached, pages_used: KV pages in all; holding nothing; holding
            reusable prefixes that no request uses (evictable); held by running requests, or by
            the store while it reads or writes them.
        steps, graph_steps: forward passes in all; those replayed from a recorded graph.
        phase_steps, step_seconds, forward_seconds: steps, the seconds in them, and those in which
            the model ran, by phase: "prefill" steps hold prompt tokens, "decode" steps none. A step
            begins where the tokens of the one before it were chosen, unless nothing ran in between:
            what forward does not account for is sampling, and all else that kept it waiting.
        prompt_tokens, cached_tokens, generated_tokens: of all requests admitted so far.
        prefill_seconds_saved: an estimate of how much later first tokens would have come without
            the cached ones: these, times the seconds per token of the fastest step so far that
            computed at least 64 tokens of prompts and nothing else; 0 before there was one. What
            long prompts' attention adds is left out, and so is what loading them took.
        preemptions: how often a running request gave its pages to an older one and went back to
            its place in the line.
        prefill_tokens: tokens computed in prefill chunks, recomputed ones included.
        prefill_chunks: chunks by size, rounded up to a power of two: {16: 3, 512: 1}.
        max_itl_s: seconds that a step may take by prediction while anything decodes.
        finished: requests ended, by finish_reason.
        backend, kernel_target: "kt" or "torch"; the instruction set in use ("avx2", …; "torch").
        weight_format: as asked for.
        weight_formats: what each kind of matrix was packed to: {"experts": "int4", …}.
        kv_dtype: as resolved.
        eager_ops: ops for which there is no kernel, and how often each divides a recorded decode.
        op_counts: how often each kernel op ran, the probe's included; empty for the torch backend.
        store_counters: by tier of the prefix store, "memory" and where there is one "disk", what it
            counts since it was opened: {"memory": {"hit_pages": 3, …}, …}. See kt_kvcache's Stats.
        store_gauges: by tier, what it holds now.
    """

    num_running: int
    num_waiting: int
    num_loading: int
    num_pages: int
    pages_free: int
    pages_cached: int
    pages_used: int
    steps: int
    graph_steps: int
    phase_steps: Mapping[str, int]
    step_seconds: Mapping[str, float]
    forward_seconds: Mapping[str, float]
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds_saved: float
    generated_tokens: int
    preemptions: int
    prefill_tokens: int
    prefill_chunks: Mapping[int, int]
    max_itl_s: float
    finished: Mapping[str, int]
    backend: str
    kernel_target: str
    weight_format: str
    weight_formats: Mapping[str, str]
    kv_dtype: str
    eager_ops: Mapping[str, int]
    op_counts: Mapping[str, int]
    store_counters: Mapping[str, Mapping[str, int]]
    store_gauges: Mapping[str, Mapping[str, float]]


class ContextLengthError(ValueError):
    """The request cannot fit the context or the page pool. Carries both numbers for the API's
    error."""

    def __init__(self, num_tokens: int, max_model_len: int, what: str) -> None:
        super().__init__(f"[engine.add] {what} must fit {max_model_len} tokens; got {num_tokens}")
        self.num_tokens = num_tokens
        self.max_model_len = max_model_len


class QueueFullError(RuntimeError):
    """Too much is waiting; try again later. Carries the limit that was reached.

    Args:
        limit: max_waiting or max_waiting_tokens.
        what: what it counts.
    """

    def __init__(self, limit: int, what: str = "requests") -> None:
        super().__init__(f"[engine.add] at most {limit} {what} may wait; the queue is full")
        self.limit = limit


class EngineClosedError(RuntimeError):
    """The engine was closed or its thread died; the message says which. Not silence."""
