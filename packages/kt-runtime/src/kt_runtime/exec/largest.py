# SPDX-License-Identifier: Apache-2.0
"""The k largest entries of a long row, exactly, without sorting it. Not probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

# Entries per block. Short blocks leave few candidates, long ones few maxima, and numpy takes the
# maxima of 300 long blocks in half the time of 600 short ones.
_BLOCK = 512


def largest(values: Floats, k: int) -> Ids:
    """Ids of the k largest values, the largest first; ties go to the lower id.

    Args:
        values: (n,) float32 without NaN; -inf may be among them.
        k: at least 1; all ids where there are fewer.
    """
    k = min(k, len(values))
    num_blocks = len(values) // _BLOCK
    if 2 * k <= num_blocks:
        # Each of the k blocks with the largest maxima holds a value of at least the k-th maximum,
        # so the k-th largest value is no smaller than that.
        maxima = values[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
        floor = np.partition(maxima, num_blocks - k)[num_blocks - k]
    else:
        floor = np.partition(values, len(values) - k)[len(values) - k]
    ids = np.flatnonzero(values >= floor)
    return ids[np.argsort(-values[ids], kind="stable")[:k]]
