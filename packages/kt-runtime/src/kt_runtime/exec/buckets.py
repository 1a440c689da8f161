# SPDX-License-Identifier: Apache-2.0
"""Which batch sizes get a recorded graph. Sizes only; recording is the GraphRunner's job."""

from __future__ import annotations

from bisect import bisect_left

# Every size up to 8, because padding costs most where batches are small; then two sizes per
# doubling (12, 16, 24, 32, …), so that a batch is never padded by more than a half.
_DENSE_UP_TO = 8


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """Ascending sizes; the last one is the first that holds max_rows."""
    sizes = list(range(1, min(max_rows, _DENSE_UP_TO) + 1))
    base = _DENSE_UP_TO
    while sizes[-1] < max_rows:
        sizes += [base + base // 2, 2 * base]
        base *= 2
    return tuple(sizes[: bisect_left(sizes, max_rows) + 1])


def bucket_for(sizes: tuple[int, ...], num_rows: int) -> int | None:
    """The smallest size that holds num_rows, or None."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if num_rows > 0 and index < len(sizes) else None
