# SPDX-License-Identifier: Apache-2.0
"""LLM: the offline face of the engine. Blocking calls over text or token ids; no server, no thread
of its own."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig, WeightFormat
from kt_runtime.core import (
    EngineStats,
    FinishReason,
    QueueFullError,
    Request,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from kt_runtime.engine import Engine
from kt_runtime.inspect import resolve_model
from kt_runtime.text import ChatTemplate, Detokenizer, Tokenizer

GREEDY = SamplingParams(temperature=0.0)

TokenIds = Sequence[int] | NDArray[np.integer[Any]] | Tensor
Prompt = str | TokenIds
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: what the tokens say, without control tokens and what ended the answer; "" where the
            checkpoint has no tokenizer.
        token_ids: every generated token, the one that ended the answer included.
        finish_reason: "stop" (end of sequence, stop token or stop string), "length" or "error".
        num_prompt_tokens, num_cached_tokens, num_generated_tokens: usage; cached is the part of the
            prompt whose KV was reused.
        error: why, when finish_reason is "error".
        logprobs: one per token of token_ids, where asked for.
        prompt_logprobs: one per token of the prompt, where asked for; None for the first.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


class LLM:
    """A model with its tokenizer, answering in the calling thread. One call at a time.

    Args:
        path: a checkpoint directory, a GGUF file, or the name of a demo model.
        weight_format: "native", "float32", "bf16", "int8" or "int4"; see `EngineConfig`.
        device: "auto" or "cpu".
        progress: called with (bytes packed so far, bytes in all) while loading.
        **engine_config: other fields of `EngineConfig`.

    Attributes:
        engine: what runs the model. Everything goes through it, `logits` included.
        tokenizer: None where the checkpoint has none; prompts must then be token ids.

    Raises:
        ValueError: `[model] …`, `[checkpoint] …` or `[config] …`.
        TypeError: not a field of `EngineConfig`.
    """

    def __init__(
        self,
        path: str | Path,
        weight_format: WeightFormat = "native",
        device: str = "auto",
        *,
        progress: Callable[[int, int], None] | None = None,
        **engine_config: Any,
    ) -> None:
        config = EngineConfig(weight_format=weight_format, device=device, **engine_config)
        found = ModelFiles.open(resolve_model(path))
        self.tokenizer = Tokenizer.from_pretrained(found) if Tokenizer.is_in(found) else None
        self._chat_template = ChatTemplate.from_pretrained(found)
        self._request_ids = itertools.count()
        self.engine = Engine.from_pretrained(found, config, progress)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer prompts, all batched together.

        Args:
            prompts: a text, token ids (a list, an array or a tensor of one row), or several of
                those. Texts are encoded with the tokenizer's own beginning-of-text tokens.
            sampling: for all of them; None is greedy, up to the end of the context.

        Returns:
            One Completion per prompt, in order.

        Raises:
            ValueError: a prompt that cannot be run; nothing is generated for any of them then.
        """
        return self._complete([self._encode(p) for p in _each_prompt(prompts)], sampling or GREEDY)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling: SamplingParams | None = None,
        **template_variables: Any,
    ) -> list[Completion]:
        """Answer conversations through the model's chat template.

        Args:
            messages: a conversation, [{"role": …, "content": …}, …], or a list of conversations.
            sampling: as for `generate`.
            **template_variables: handed to the template.

        Raises:
            ValueError: no chat template or tokenizer, or the template refuses the messages.
        """
        tokenizer = self._need_tokenizer("chat")
        template = self._chat_template
        if template is None:
            raise ValueError("[llm.chat] the checkpoint must have a chat template; it has none")
        conversations: Iterable[Any] = messages
        if len(messages) > 0 and isinstance(messages[0], Mapping):
            conversations = [messages]
        texts = [template.render(each, **template_variables) for each in conversations]
        return self._complete([tokenizer.encode(text) for text in texts], sampling or GREEDY)

    def logits(self, token_ids: TokenIds, chunk_size: int | None = None) -> NDArray[np.float32]:
        """Logits of every position: row i is the model's view of what follows token_ids[: i + 1].

        An ordinary request through engine, scheduler, runner and pages that generates nothing.

        Args:
            token_ids: the sequence.
            chunk_size: most tokens computed per step; 1 takes decode steps. None: as many as fit.

        Returns:
            (num_tokens, vocab_size) float32.

        Raises:
            ValueError: not whole numbers in one row, ids outside the vocabulary, or more of them
                than the context holds.
            RuntimeError: the model failed; the message says how.
        """
        request_id = self._next_id()
        ids = _plain_ids(token_ids, "logits")
        self.engine.add(Request(request_id, ids, return_logits=True, chunk_size=chunk_size))
        try:
            while self.engine.has_work:
                self.engine.wait_for_work()
                for event in self.engine.step():
                    if event.finish_reason in ("error", "abort"):
                        raise RuntimeError(f"[llm.logits] the model failed: {event.error}")
        finally:
            self._end([request_id])
        return self.engine.take_logits(request_id)

    def stats(self) -> EngineStats:
        """The engine's counters."""
        return self.engine.stats()

    def close(self) -> None:
        """End the engine; later calls raise EngineClosedError. Idempotent."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[Completion]:
        if sampling.stop:
            self._need_tokenizer("generate")
        answers = [
            _Answer(Request(self._next_id(), tuple(prompt), sampling), self.tokenizer)
            for prompt in prompts
        ]
        for answer in answers:
            self.engine.validate(answer.request)
        running = {answer.request.request_id: answer for answer in answers}
        unsent = deque(answers)
        try:
            while unsent or self.engine.has_work:
                while unsent and self._sent(unsent[0].request):
                    unsent.popleft()
                self.engine.wait_for_work()
                for event in self.engine.step():
                    answer = running[event.request_id]
                    answer.take(event)
                    if answer.stopped_by_text and event.finish_reason is None:
                        self.engine.abort(event.request_id, reason="stop")
        finally:
            self._end(running)
        return [answer.completion() for answer in answers]

    def _sent(self, request: Request) -> bool:
        try:
            self.engine.add(request)
        except QueueFullError:
            return False
        return True

    def _end(self, request_ids: Iterable[str]) -> None:
        """An exception or Ctrl-C leaves nothing running."""
        for request_id in request_ids:
            self.engine.abort(request_id)
        while self.engine.has_work:
            self.engine.wait_for_work()
            self.engine.step()

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._need_tokenizer("generate").encode(prompt, add_special_tokens=True)
        return _plain_ids(prompt, "generate")

    def _need_tokenizer(self, op: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"[llm.{op}] text needs a tokenizer in the checkpoint; got none")
        return self.tokenizer

    def _next_id(self) -> str:
        return f"llm-{next(self._request_ids)}"


class _Answer:
    """What one request has said so far."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self.request = request
        sampling = request.sampling
        self._detokenizer = (
            None
            if tokenizer is None
            else Detokenizer(tokenizer, sampling.stop, min_tokens=sampling.min_tokens)
        )
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self._last: TokenEvent | None = None

    @property
    def stopped_by_text(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._detokenizer is not None and self._detokenizer.stopped is not None

    def take(self, event: TokenEvent) -> None:
        """Add one event; after a stop string only its usage counts."""
        self._last = event
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        if event.token_id is None or self.stopped_by_text:
            return
        self._token_ids.append(event.token_id)
        if event.logprobs is not None:
            self._logprobs.append(event.logprobs)
        # The token that ended the answer is not part of its text.
        if self._detokenizer is not None and event.finish_reason != "stop":
            self._text.append(self._detokenizer.feed(event.token_id))

    def completion(self) -> Completion:
        """The finished answer."""
        last = self._last
        if last is None or last.finish_reason is None:
            raise RuntimeError(
                "[llm.generate] the engine was closed before the answer was complete"
            )
        if self._detokenizer is not None:
            self._text.append(self._detokenizer.finish())
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason="stop" if self.stopped_by_text else last.finish_reason,
            num_prompt_tokens=last.num_prompt_tokens,
            num_cached_tokens=last.num_cached_tokens,
            num_generated_tokens=len(self._token_ids),
            error=last.error,
            logprobs=None if self.request.sampling.logprobs is None else tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
        )


def _each_prompt(prompts: Any) -> list[Any]:
    """One prompt or several, as lists; arrays and tensors become lists too."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise ValueError(
            f"[llm.generate] prompts must be a text, token ids or several of those; got {prompts!r}"
        )
    items = [_as_list(item) for item in _as_list(prompts)]
    is_one = bool(items) and not isinstance(items[0], Sequence)
    return [items] if is_one else items


def _plain_ids(token_ids: Any, op: str) -> tuple[int, ...]:
    """Token ids as ints; nothing is rounded."""
    try:
        return tuple(map(operator.index, _as_list(token_ids)))
    except TypeError:
        raise ValueError(
            f"[llm.{op}] token ids must be whole numbers in one row; got {token_ids!r:.100}"
        ) from None


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
