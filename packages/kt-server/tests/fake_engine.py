# SPDX-License-Identifier: Apache-2.0
"""An engine that answers with a given text, one byte per token, and a tokenizer to go with it.

Keeps kt_runtime.Engine's promises about events, aborts and pages; computes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from kt_runtime.core import (
    ContextLengthError,
    EngineClosedError,
    EngineStats,
    FinishReason,
    InvalidFieldError,
    QueueFullError,
    Request,
    TokenEvent,
    TokenLogprobs,
)
from kt_runtime.text import ChatTemplate, Tokenizer

PAGE_SIZE = 16
NUM_PAGES = 64


def byte_tokenizer() -> Tokenizer:
    """One token per byte, then three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    return Tokenizer(backend)


TOKENIZER = byte_tokenizer()
END = TOKENIZER.encode("<|end|>")[0]
TEMPLATE = ChatTemplate(
    "{% for m in messages %}"
    "{% if m.content == 'refuse' %}{{ raise_exception('no refusing') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>{{ suffix }}"
)


def fake_logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    """What the fake engine reports: the token is the third of the most probable ones."""
    others = [i for i in range(num_top + 1) if i != token_id]
    ids = [*others[:2], token_id, *others[2:]][:num_top]
    return TokenLogprobs(token_id, -1.25, tuple((i, -0.25 - n / 2) for n, i in enumerate(ids)))


class FakeEngine:
    """Answers every request with `answer` and an end token.

    Attributes:
        answer: the text, or a function from the request to it.
        token_s: seconds between two tokens.
        first_token_s: seconds before the first.
        fail_at: token number at which a request ends with an error, or None.
        cached_tokens: reported as reused from every prompt.
        takes_priority: whether requests may carry one.
        max_running: more requests than this are refused as a full queue.
        requests: all that were admitted, in order.
        finished: requests ended, by reason; "abort" where the reader left.
    """

    def __init__(self, answer: str | Callable[[Request], str] = "Paris.") -> None:
        self.answer = answer
        self.token_s = 0.0
        self.first_token_s = 0.0
        self.fail_at: int | None = None
        self.cached_tokens = 0
        self.max_running = 100
        self.max_model_len = 500
        self.takes_priority = False
        self.closed_reason: str | None = None
        self.requests: list[Request] = []
        self.finished: Counter[str] = Counter()
        self._running: dict[str, int] = {}
        self._aborts: dict[str, FinishReason] = {}
        self._num_tokens = 0

    def validate(self, request: Request) -> None:
        ids = request.prompt_token_ids
        if not ids or min(ids) < 0 or max(ids) >= TOKENIZER.vocab_size:
            raise ValueError(f"[engine.add] prompt_token_ids must be ids; got {ids[:3]}")
        if max(request.sampling.logit_bias, default=0) >= TOKENIZER.vocab_size:
            bias = request.sampling.logit_bias
            raise InvalidFieldError("engine.add", "logit_bias", "ids must be known", bias)
        if len(ids) + 1 > self.max_model_len:
            raise ContextLengthError(len(ids) + 1, self.max_model_len, "the prompt and one token")
        if request.priority and not self.takes_priority:
            raise InvalidFieldError("engine.add", "priority", "must be 0", request.priority)

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        self.validate(request)
        if self.closed_reason is not None:
            raise EngineClosedError(self.closed_reason)
        if len(self._running) >= self.max_running:
            raise QueueFullError(self.max_running)
        self.requests.append(request)
        self._running[request.request_id] = -(-len(request.prompt_token_ids) // PAGE_SIZE)
        reason: FinishReason = "abort"
        try:
            for event in self._events(request):
                await self._pause(event.num_generated_tokens)
                if self.closed_reason is not None:
                    yield self._event(request, 0, None, "abort")
                    return
                self._num_tokens += event.token_id is not None
                reason = event.finish_reason or "abort"
                yield event
        finally:
            del self._running[request.request_id]
            self.finished[self._aborts.pop(request.request_id, reason)] += 1

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        if request_id in self._running:
            self._aborts.setdefault(request_id, reason)

    def stats(self) -> EngineStats:
        used = sum(self._running.values())
        return EngineStats(
            num_running=len(self._running),
            num_waiting=0,
            num_loading=0,
            num_pages=NUM_PAGES,
            pages_free=NUM_PAGES - used - 1,
            pages_cached=1,
            pages_used=used,
            steps=self._num_tokens,
            graph_steps=0,
            phase_steps={"prefill": 0, "decode": self._num_tokens},
            step_seconds={"prefill": 0.0, "decode": 0.5 * self._num_tokens},
            forward_seconds={"prefill": 0.0, "decode": 0.375 * self._num_tokens},
            prompt_tokens=sum(len(r.prompt_token_ids) for r in self.requests),
            cached_tokens=self.cached_tokens * len(self.requests),
            prefill_seconds_saved=1.5,
            generated_tokens=self._num_tokens,
            preemptions=2,
            prefill_tokens=70,
            prefill_chunks={64: 1, 8: 2},
            max_itl_s=0.1,
            finished=dict(self.finished),
            backend="fake",
            kernel_target="none",
            weight_format="native",
            weight_formats={"linear": "float32", "experts": "bf16"},
            kv_dtype="bf16",
            eager_ops={},
            op_counts={"attention": 3},
            store_counters={
                "memory": {"hit_pages": 5},
                "disk": {
                    "hit_pages": 4,
                    "io_errors": 0,
                    "evicted_pages": 9,
                    "quota_evicted_pages": 2,
                    "expired_pages": 3,
                },
            },
            store_gauges={"memory": {"num_pages": 64.0}, "disk": {"allocated_bytes": 8192.0}},
        )

    def close(self, reason: str = "the engine was closed") -> None:
        self.closed_reason = self.closed_reason or reason

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def _pause(self, num_generated: int) -> None:
        seconds = self.first_token_s if num_generated == 1 else self.token_s
        step = 0.005
        while seconds > 0 and self.closed_reason is None:
            await asyncio.sleep(min(step, seconds))
            seconds -= step
        await asyncio.sleep(0)

    def _events(self, request: Request) -> list[TokenEvent]:
        answer = self.answer if isinstance(self.answer, str) else self.answer(request)
        sampling = request.sampling
        events = []
        ids = [*TOKENIZER.encode(answer), END]
        if sampling.max_tokens == 0:
            return [self._event(request, 0, None, "length")]
        room = self.max_model_len - len(request.prompt_token_ids)
        for number, token_id in enumerate(ids, start=1):
            if number == self.fail_at:
                return [*events, self._event(request, number - 1, None, "error")]
            reason: FinishReason | None = None
            if (token_id == END and not sampling.ignore_eos) or token_id in sampling.stop_token_ids:
                reason = "stop"
            elif number in (sampling.max_tokens, room, len(ids)):
                reason = "length"
            events.append(self._event(request, number, token_id, reason))
            if reason is not None:
                break
        return events

    def _event(
        self, request: Request, number: int, token_id: int | None, reason: FinishReason | None
    ) -> TokenEvent:
        errors = {"error": "kernel fell over", "abort": self.closed_reason}
        error = errors.get(reason or "")
        prompt, sampling = request.prompt_token_ids, request.sampling
        logprobs = prompt_logprobs = None
        if sampling.logprobs is not None and token_id is not None:
            logprobs = fake_logprobs(token_id, sampling.logprobs)
        num_top = sampling.prompt_logprobs
        if num_top is not None and number <= 1:
            prompt_logprobs = (None, *(fake_logprobs(i, num_top) for i in prompt[1:]))
        return TokenEvent(
            request.request_id,
            token_id,
            reason,
            len(prompt),
            self.cached_tokens,
            number,
            error,
            logprobs,
            prompt_logprobs,
        )
