# SPDX-License-Identifier: Apache-2.0
"""Chooses one request's next token from one row of logits. numpy only; no state, no batch.

Order: temperature → top-k → top-p → min-p, each over what the one before it kept: the order in
which Hugging Face transformers' `generate` applies its warpers. top-p: Holtzman et al., 2020;
min-p: Nguyen et al., 2024. Ties go to the lower id everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import SamplingParams

# The first guess at how many tokens hold top_p of the mass; language models rarely need more. Where
# it is too small, all weights are sorted.
_FIRST_CANDIDATES = 256
# Weights per block of the draw: sums of blocks come at memory speed, a running sum over a whole
# vocabulary would take ten times as long.
_BLOCK = 512

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]


class NonFiniteLogitsError(ValueError):
    """The model gave NaN, +inf or nothing but -inf: there is no distribution to sample from."""


def sample(logits: Floats, sampling: SamplingParams, seed: int, index: int) -> int:
    """The next token id.

    Args:
        logits: (vocab_size,) float32, not modified; -inf forbids a token.
        sampling: how to choose.
        seed: key of the request's random numbers.
        index: how many tokens were generated before; the counter of the random numbers.

    Raises:
        NonFiniteLogitsError: the row is broken.
    """
    best = logits.max()  # NaN if any entry is
    if not np.isfinite(best):
        raise NonFiniteLogitsError(f"[sampler] logits must be finite; their maximum is {best}")
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(logits.argmax())
    ids, weights = candidates(logits, sampling)
    return int(ids[draw(weights, uniform(seed, index))])


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
    sums = np.cumsum(np.add.reduceat(weights, range(0, len(weights), _BLOCK), dtype=np.float64))
    target = number * sums[-1]
    block = int(np.searchsorted(sums, target, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = sums[block - 1] if block else 0.0
    index = np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side="right")
    # The two sums of a block may differ in the last bit; a weight of 0 is never drawn.
    return block * _BLOCK + min(int(index), int(np.flatnonzero(inside)[-1]))


def candidates(logits: Floats, sampling: SamplingParams) -> tuple[Ids, Floats]:
    """Tokens that may be drawn, by id, and their unnormalised probabilities."""
    # A temperature that float32 rounds to 0 would make 0 / 0 of the best token.
    temperature = np.float32(max(sampling.temperature, float(np.finfo(np.float32).tiny)))
    with np.errstate(under="ignore", over="ignore"):
        weights = np.exp((logits - logits.max()) / temperature)
    ids = np.arange(len(weights))
    if 0 < sampling.top_k < len(ids):
        smallest = np.partition(weights, len(weights) - sampling.top_k)[-sampling.top_k]
        ids = _largest(weights, sampling.top_k, smallest)
        weights = weights[ids]
    if sampling.top_p < 1:
        kept = _top_p(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))  # the best has weight 1
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def _largest(weights: Floats, k: int, smallest: np.float32) -> Ids:
    """Ascending indices of the k largest weights, the k-th of which is `smallest`."""
    above = np.flatnonzero(weights > smallest)
    ties = np.flatnonzero(weights == smallest)[: k - len(above)]
    return np.sort(np.concatenate([above, ties]))


def _top_p(weights: Floats, top_p: float) -> Ids:
    """Ascending indices of the fewest weights that hold top_p of the mass."""
    mass = top_p * weights.sum(dtype=np.float64)
    size = min(_FIRST_CANDIDATES, len(weights))
    falling = np.sort(np.partition(weights, len(weights) - size)[-size:])[::-1]
    length = _prefix(falling, mass)
    if length > size:
        falling = np.sort(weights)[::-1]
        # Rounding may keep even the whole sum below the mass.
        length = min(_prefix(falling, mass), len(weights))
    return _largest(weights, length, falling[length - 1])


def _prefix(falling: Floats, mass: float) -> int:
    """How many leading weights it takes to reach `mass`; more than there are if they do not."""
    return int(np.searchsorted(np.cumsum(falling, dtype=np.float64), mass, side="left")) + 1
