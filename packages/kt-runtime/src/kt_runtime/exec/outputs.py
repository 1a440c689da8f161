# SPDX-License-Identifier: Apache-2.0
"""What requests make of their rows of logits: the next token, log probabilities, kept logits. Knows
no step and no scheduler.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import Request, TokenLogprobs
from kt_runtime.exec.logprobs import PromptLogprobs, token_logprobs
from kt_runtime.exec.sampler import TokenSampler
from kt_runtime.scheduler import Sequence

Floats = NDArray[np.float32]


class RequestOutputs:
    """Holds a request's sampler, its prompt's log probabilities and its logits, each from when it
    is first needed.

    The stepping thread's, but for `take_logits`.

    Args:
        eos_token_ids: the model's.
        vocab_size: length of a row.
    """

    def __init__(self, eos_token_ids: Collection[int], vocab_size: int) -> None:
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._samplers: dict[str, TokenSampler] = {}
        self._prompt_logprobs: dict[str, PromptLogprobs] = {}
        self._logits: dict[str, Floats] = {}

    def sample(self, sequence: Sequence, logits: Floats) -> int:
        """The next token from its row (vocab_size,).

        Raises:
            NonFiniteLogitsError: the row is broken.
        """
        request = sequence.request
        sampler = self._samplers.get(request.request_id)
        if sampler is None:
            sampler = self._samplers[request.request_id] = TokenSampler(
                request.sampling,
                sequence.seed,
                request.prompt_token_ids,
                self._eos_token_ids,
                self._vocab_size,
            )
        return sampler.next(logits)

    def logprobs(self, request: Request, logits: Floats, token_id: int) -> TokenLogprobs:
        """Log probabilities of a token under its row (vocab_size,), as many as asked for."""
        return token_logprobs(logits, token_id, request.sampling.logprobs or 0)

    def score_prompt(self, sequence: Sequence, logits: Floats, start: int) -> None:
        """Reduce a chunk's prompt logits to log probabilities, if they are asked for.

        Args:
            sequence: whose.
            logits: (n, vocab_size) of positions start … start + n - 1.
            start: position of the first row.

        Raises:
            NonFiniteLogitsError: a row is broken.
        """
        request = sequence.request
        num_top = request.sampling.prompt_logprobs
        if num_top is None or sequence.num_generated_tokens > 0:
            return
        gathered = self._prompt_logprobs.setdefault(
            request.request_id, PromptLogprobs(request.prompt_token_ids, num_top)
        )
        gathered.add(logits, start)

    def keep_logits(self, sequence: Sequence, logits: Floats) -> None:
        """Copy the rows of the newest computed tokens, to be taken when the request has ended."""
        request_id = sequence.request.request_id
        kept = self._logits.get(request_id)
        if kept is None:
            shape = (sequence.num_prompt_tokens, self._vocab_size)
            kept = self._logits[request_id] = np.empty(shape, np.float32)
        end = sequence.num_computed_tokens
        kept[end - len(logits) : end] = logits

    def prompt_logprobs(self, request: Request) -> tuple[TokenLogprobs | None, ...] | None:
        """Those of the whole prompt, once; None where none were asked for."""
        gathered = self._prompt_logprobs.pop(request.request_id, None)
        return None if gathered is None else gathered.all()

    def holds_logits(self, request_id: str) -> bool:
        """Whether any were kept. Thread-safe."""
        return request_id in self._logits

    def take_logits(self, request_id: str) -> Floats:
        """(num_prompt_tokens, vocab_size), once. Thread-safe."""
        return self._logits.pop(request_id)

    def end(self, request_id: str, *, complete: bool) -> None:
        """Forget an ended request; its logits stay to be taken, if they are complete."""
        self._samplers.pop(request_id, None)
        self._prompt_logprobs.pop(request_id, None)
        if not complete:
            self._logits.pop(request_id, None)
