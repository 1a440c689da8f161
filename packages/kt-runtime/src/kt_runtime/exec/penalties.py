# SPDX-License-Identifier: Apache-2.0
"""What a request's past and wishes do to its logits: bias, penalties, the wait for min_tokens. Not
the choice of a token (sampler.py).

Penalties: repetition as Keskar et al., 2019 (CTRL) and transformers define it, over prompt and
output; presence and frequency as OpenAI's API defines them, over the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import SamplingParams

Floats = NDArray[np.float32]


class TokenCounts:
    """Which tokens a request has seen and how often it generated each. Grows with the distinct
    tokens, not with the vocabulary.

    Args:
        prompt_token_ids: seen, and not generated.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        ids = np.unique(np.asarray(prompt_token_ids, np.intp))
        self._size = len(ids)
        self._place = {token_id: i for i, token_id in enumerate(ids.tolist())}
        self._ids = ids
        self._counts = np.zeros(len(ids), np.float32)

    def add(self, token_id: int) -> None:
        """One more generated token. Amortised O(1)."""
        place = self._place.setdefault(token_id, self._size)
        if place == self._size:
            if place == len(self._ids):
                room = np.zeros(max(16, place), np.intp)
                self._ids = np.concatenate([self._ids, room])
                self._counts = np.concatenate([self._counts, room.astype(np.float32)])
            self._ids[place] = token_id
            self._size += 1
        self._counts[place] += 1

    @property
    def token_ids(self) -> NDArray[np.intp]:
        """The distinct tokens seen, in order of first sight after the prompt's."""
        return self._ids[: self._size]

    @property
    def num_generated(self) -> Floats:
        """(len(token_ids),) how often each was generated; 0 for those only in the prompt."""
        return self._counts[: self._size]


class LogitAdjuster:
    """Changes one request's logits before a token is chosen from them.

    Order: logit_bias → repetition penalty → frequency and presence penalties → min_tokens: that of
    transformers' processors, to which presence and frequency are added where vLLM has them.

    Args:
        sampling: what was asked for.
        prompt_token_ids: they count as seen.
        eos_token_ids: the model's; forbidden until min_tokens unless they are ignored.
        vocab_size: ids from here on have no logit.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Iterable[int],
        vocab_size: int,
    ) -> None:
        self._sampling = sampling
        self._bias_ids = np.array(list(sampling.logit_bias), np.intp)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        enders = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        self._enders = np.array(sorted(i for i in enders if 0 <= i < vocab_size), np.intp)
        penalises = (
            sampling.repetition_penalty != 1
            or sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
        )
        self._counts = TokenCounts(prompt_token_ids) if penalises else None

    def adjusted(self, logits: Floats, num_generated: int) -> Floats:
        """The logits to choose from: the same array if nothing changes, else a copy.

        Args:
            logits: (vocab_size,) float32, not modified.
            num_generated: tokens generated so far.
        """
        waits = num_generated < self._sampling.min_tokens and len(self._enders) > 0
        if self._counts is None and not len(self._bias) and not waits:
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if self._counts is not None:
            self._penalise(logits, self._counts)
        if waits:
            logits[self._enders] = -np.inf
        return logits

    def note(self, token_id: int) -> None:
        """The token that was chosen."""
        if self._counts is not None:
            self._counts.add(token_id)

    def _penalise(self, logits: Floats, counts: TokenCounts) -> None:
        sampling = self._sampling
        ids, num_generated = counts.token_ids, counts.num_generated
        values = logits[ids]
        repetition = np.float32(sampling.repetition_penalty)
        values = np.where(values < 0, values * repetition, values / repetition)
        values -= np.float32(sampling.frequency_penalty) * num_generated
        values -= np.float32(sampling.presence_penalty) * (num_generated > 0)
        logits[ids] = values
