# SPDX-License-Identifier: Apache-2.0
"""Chooses one request's next token from one row of logits. numpy only; no state, no batch.

Order: temperature → top-k → top-p → min-p, each over what the one before it kept: the order in
which
Hugging Face transformers' `generate` applies its warpers. top-p: Holtzman et al., 2020; min-p:
Nguyen et al., 2024. Ties go to the lower id everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kt_runtime.core import SamplingParams

# The first guess at how many candidates hold top_p of the mass. Language models rarely need more;
# when the guess is too small it grows sixteenfold, so a flat distribution costs at most a few more
# passes.
_FIRST_CANDIDATES = 256

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
    cumulative = np.cumsum(weights, dtype=np.float64)
    return int(ids[np.searchsorted(cumulative, uniform(seed, index) * cumulative[-1], "right")])


def uniform(seed: int, index: int) -> float:
    """The request's random number number `index`, in [0, 1).

    Counter-based (Philox; Salmon et al., 2011): it depends on these two numbers alone, so neither
    batch mates nor a restart in the middle change what a request says.
    """
    bits = int(np.random.Philox(key=seed % 2**64, counter=index).random_raw())
    # 52 bits: times any float64, the largest value still rounds to below that float64, so that a
    # search in cumulative weights always ends inside them.
    return (bits >> 12) / 2**52


def candidates(logits: Floats, sampling: SamplingParams) -> tuple[Ids, Floats]:
    """Tokens that may be drawn and their unnormalised probabilities.

    In order of id where nothing is truncated by rank, else by falling probability.
    """
    # A temperature that float32 rounds to 0 would make 0 / 0 of the best token.
    temperature = np.float32(max(sampling.temperature, float(np.finfo(np.float32).tiny)))
    with np.errstate(under="ignore", over="ignore"):
        weights = np.exp((logits - logits.max()) / temperature)
    ids: Ids | None = None
    if 0 < sampling.top_k < len(weights):
        ids = _largest(weights, sampling.top_k)
    if sampling.top_p < 1:
        ids = _top_p(weights, ids, sampling.top_p)
    kept = weights if ids is None else weights[ids]
    if sampling.min_p > 0:
        above = kept >= np.float32(sampling.min_p)  # the most probable token has weight 1
        ids, kept = (np.flatnonzero(above) if ids is None else ids[above]), kept[above]
    return (np.arange(len(weights)) if ids is None else ids), kept


def _largest(weights: Floats, k: int) -> Ids:
    """Ids of the k largest weights, falling, ties by id. Exact: ties at the edge go to the lower
    ids."""
    smallest = np.partition(weights, len(weights) - k)[len(weights) - k]
    above = np.flatnonzero(weights > smallest)
    ties = np.flatnonzero(weights == smallest)[: k - len(above)]
    ids = np.concatenate([above, ties])
    return ids[np.lexsort((ids, -weights[ids]))]


def _top_p(weights: Floats, ids: Ids | None, top_p: float) -> Ids:
    """The shortest prefix of `ids` (None: of all ids by falling weight) with top_p of their
    mass."""
    if ids is not None:
        return ids[: _prefix(weights[ids], top_p * weights[ids].sum(dtype=np.float64))]
    mass = top_p * weights.sum(dtype=np.float64)
    size = _FIRST_CANDIDATES
    while size < len(weights):
        ids = _largest(weights, size)
        length = _prefix(weights[ids], mass)
        if length <= size:
            return ids[:length]
        size *= 16
    ids = np.argsort(-weights, kind="stable")
    return ids[: _prefix(weights[ids], mass)]


def _prefix(falling: Floats, mass: float) -> int:
    """How many leading weights it takes to reach `mass`; all, where rounding keeps the sum below
    it."""
    return int(np.searchsorted(np.cumsum(falling, dtype=np.float64), mass, side="left")) + 1
