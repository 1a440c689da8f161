# SPDX-License-Identifier: Apache-2.0
"""Log probabilities of tokens as the model gave them: before bias, penalties, temperature and
truncation. Not what a token was drawn with.

A log-softmax of the raw logits: exponentials in float32, their sum and everything after it in
float64. Ties go to the lower id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import TokenLogprobs
from kt_runtime.exec.largest import largest
from kt_runtime.exec.sampler import check_logits

Floats = NDArray[np.float32]


def token_logprobs(logits: Floats, token_id: int, num_top: int) -> TokenLogprobs:
    """One token's log probability and the most probable tokens beside it.

    Args:
        logits: (vocab_size,) float32, finite or -inf, not all -inf.
        token_id: whose log probability.
        num_top: how many of the most probable to list; 0 lists none.

    Raises:
        NonFiniteLogitsError: the row is broken.
    """
    best = logits.max()
    check_logits(best)
    with np.errstate(under="ignore", over="ignore"):
        mass = np.exp(logits - best).sum(dtype=np.float64)
    log_mass = float(best) + float(np.log(mass))
    top_ids = largest(logits, num_top) if num_top else ()
    top = tuple((int(i), float(logits[i]) - log_mass) for i in top_ids)
    return TokenLogprobs(token_id, float(logits[token_id]) - log_mass, top)


class PromptLogprobs:
    """Log probabilities of a prompt's tokens, gathered chunk by chunk: each chunk's logits are
    reduced at once, so that a long prompt's are never held together.

    Args:
        prompt_token_ids: the prompt.
        num_top: as for `token_logprobs`.
    """

    def __init__(self, prompt_token_ids: Sequence[int], num_top: int) -> None:
        self._ids = prompt_token_ids
        self._num_top = num_top
        # Nothing comes before the first token.
        self._gathered: list[TokenLogprobs | None] = [None]

    def add(self, logits: Floats, start: int) -> None:
        """A chunk's logits; positions that were there before are passed over.

        Args:
            logits: (n, vocab_size) float32 of positions start … start + n - 1, no later than one
                after what was gathered. Position p is the model's view of token p + 1.
            start: position of the first row.

        Raises:
            NonFiniteLogitsError: a row is broken.
        """
        for position in range(
            len(self._gathered) - 1, min(start + len(logits), len(self._ids) - 1)
        ):
            row = logits[position - start]
            self._gathered.append(token_logprobs(row, self._ids[position + 1], self._num_top))

    def all(self) -> tuple[TokenLogprobs | None, ...]:
        """One entry per prompt token once every position was added; the first is None."""
        return tuple(self._gathered)
