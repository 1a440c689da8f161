# SPDX-License-Identifier: Apache-2.0
"""Chooses one request's next token from one row of logits. numpy only; knows no batch.

Order: logit_bias → repetition, frequency and presence penalties → min_tokens (penalties.py) →
temperature → top-k → top-p → min-p, each over what the one before it kept: the order in which
Hugging Face transformers' `generate` applies its processors and warpers. top-p: Holtzman et al.,
2020; min-p: Nguyen et al., 2024. Ties go to the lower id everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import SamplingParams
from kt_runtime.exec.largest import largest
from kt_runtime.exec.penalties import LogitAdjuster

# The first guess at how many tokens hold top_p of the mass; language models rarely need more. Where
# it is too small, all weights are sorted: 1 ms for 150,000.
_FIRST_GUESS = 128
# Weights per block of the draw: sums of blocks come at memory speed, a running sum over a whole
# vocabulary would take ten times as long.
_BLOCK = 512

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]


class NonFiniteLogitsError(ValueError):
    """The model gave NaN, +inf or nothing but -inf: there is no distribution to sample from."""


def check_logits(maximum: np.float32) -> None:
    """Raises NonFiniteLogitsError unless `maximum`, NaN if any logit is, is a number."""
    if not np.isfinite(maximum):
        raise NonFiniteLogitsError(f"[sampler] logits must be finite; their maximum is {maximum}")


class TokenSampler:
    """Chooses the tokens of one request, one after the other.

    The n-th token depends on the request, its own earlier tokens and the n-th row alone: not on
    batch mates, nor on a restart in the middle.

    Args:
        sampling: how to choose.
        seed: key of the request's random numbers.
        prompt_token_ids: what penalties count as seen.
        eos_token_ids: the model's.
        vocab_size: length of a row.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Iterable[int],
        vocab_size: int,
    ) -> None:
        self._sampling = sampling
        self._seed = seed
        self._adjuster = LogitAdjuster(sampling, prompt_token_ids, eos_token_ids, vocab_size)
        self._num_generated = 0

    def next(self, logits: Floats) -> int:
        """The next token.

        Args:
            logits: (vocab_size,) float32, not modified; -inf forbids a token.

        Raises:
            NonFiniteLogitsError: the row is broken.
        """
        index = self._num_generated
        token_id = sample(self._adjuster.adjusted(logits, index), self._sampling, self._seed, index)
        self._adjuster.note(token_id)
        self._num_generated += 1
        return token_id


def sample(logits: Floats, sampling: SamplingParams, seed: int, index: int) -> int:
    """The token that temperature, truncation and random number `index` of `seed` choose.

    Args:
        logits: (vocab_size,) float32, adjusted already, not modified; -inf forbids a token.
        sampling: how to choose.
        seed: key of the request's random numbers.
        index: how many tokens were generated before; the counter of the random numbers.

    Raises:
        NonFiniteLogitsError: the row is broken.
    """
    best = int(logits.argmax())  # the first NaN if there is any
    check_logits(logits[best])
    if sampling.temperature == 0 or sampling.top_k == 1:
        return best
    ids, weights = candidates(logits, logits[best], sampling)
    chosen = draw(weights, uniform(seed, index))
    return chosen if ids is None else int(ids[chosen])


def uniform(seed: int, index: int) -> float:
    """The request's random number number `index`, in [0, 1).

    Counter-based (Philox; Salmon et al., 2011): it depends on these two numbers alone, so neither
    batch mates nor a restart in the middle change what a request says.
    """
    bits = int(np.random.Philox(key=seed % 2**64, counter=index).random_raw())
    # 52 bits: times any float64, the largest value still rounds to below that float64, so that a
    # search in cumulative weights always ends inside them.
    return (bits >> 12) / 2**52


def draw(weights: Floats, number: float) -> int:
    """The index at which the running sum of weights first exceeds `number` times their sum."""
    sums = _block_sums(weights)
    index = _position(weights, sums, number * sums[-1], "right")
    first = index // _BLOCK * _BLOCK
    # The two sums of a block may differ in the last bit; a weight of 0 is never drawn.
    return min(index, first + int(np.flatnonzero(weights[first : first + _BLOCK])[-1]))


def _block_sums(weights: Floats) -> NDArray[np.float64]:
    """The running sum of weights after each block of them."""
    whole = len(weights) // _BLOCK * _BLOCK
    # Not reduceat, which makes a copy in float64 of all there is.
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    if whole < len(weights):
        sums = np.append(sums, weights[whole:].sum(dtype=np.float64))
    return np.cumsum(sums)


def _position(
    weights: Floats, sums: NDArray[np.float64], target: float, side: Literal["left", "right"]
) -> int:
    """How many leading weights sum to less than `target` ("left"), or at most it ("right")."""
    block = int(np.searchsorted(sums, target, side=side))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = sums[block - 1] if block else 0.0
    inner = np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side=side)
    # The sums of whole blocks say that it is in this one, whatever the last bits say here.
    return block * _BLOCK + min(int(inner), max(0, len(inside) - 1))


def candidates(
    logits: Floats, best: np.float32, sampling: SamplingParams
) -> tuple[Ids | None, Floats]:
    """Tokens that may be drawn, and their unnormalised probabilities in the same order, 0 where a
    token may not be; None stands for all tokens, by id. `best` is the largest logit."""
    ids: Ids | None = None
    if 0 < sampling.top_k < len(logits):
        ids = largest(logits, sampling.top_k)
    weights = _weights(logits if ids is None else logits[ids], best, sampling.temperature)
    if sampling.top_p < 1:
        mass = sampling.top_p * weights.sum(dtype=np.float64)
        likely = _few_that_hold(weights, mass)
        if likely is None:
            _clear_tail(weights, mass)
        else:
            ids, weights = likely if ids is None else ids[likely], weights[likely]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))  # the best has weight 1
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _weights(logits: Floats, best: np.float32, temperature: float) -> Floats:
    # A temperature that float32 rounds to 0 would make 0 / 0 of the best token.
    divisor = np.float32(max(temperature, float(np.finfo(np.float32).tiny)))
    weights = logits - best
    with np.errstate(under="ignore", over="ignore"):
        weights /= divisor
        np.exp(weights, out=weights)
    return weights


def _few_that_hold(weights: Floats, mass: float) -> Ids | None:
    """Indices of the fewest weights that hold `mass`, the largest first; None if they are many."""
    if mass > _FIRST_GUESS:  # none is larger than 1
        return None
    likely = largest(weights, _FIRST_GUESS)
    length = _reaching(weights[likely], mass)
    return likely[:length] if length <= len(likely) else None


def _clear_tail(weights: Floats, mass: float) -> None:
    """Set all to 0 but the fewest weights that hold `mass`."""
    # Numpy sorts floats with vectors: faster than it can find any part of them by index. Hence also
    # zeros, where the rest could be gathered: that would take longer than the sort.
    rising = np.sort(weights)
    # Rounding may keep even the whole sum below the mass.
    length = min(_reaching(rising[::-1], mass), len(weights))
    smallest = rising[-length]
    np.multiply(weights, weights >= smallest, out=weights)
    num_larger = len(weights) - int(np.searchsorted(rising, smallest, side="right"))
    weights[np.flatnonzero(weights == smallest)[length - num_larger :]] = 0


def _reaching(falling: Floats, mass: float) -> int:
    """How many leading weights it takes to reach `mass`; more than there are if they do not."""
    return _position(falling, _block_sums(falling), mass, "left") + 1
