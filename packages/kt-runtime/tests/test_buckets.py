# SPDX-License-Identifier: Apache-2.0
"""Bucket sizes: dense at the bottom, bounded padding above."""

import pytest

from kt_runtime.exec.buckets import bucket_for, bucket_sizes


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [
        (1, (1,)),
        (8, (1, 2, 3, 4, 5, 6, 7, 8)),
        (9, (1, 2, 3, 4, 5, 6, 7, 8, 12)),
        (32, (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)),
        (33, (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48)),
    ],
)
def test_sizes(max_rows, sizes):
    assert bucket_sizes(max_rows) == sizes


@pytest.mark.parametrize("max_rows", [1, 5, 8, 13, 100, 257])
def test_every_batch_has_the_smallest_bucket_that_holds_it(max_rows):
    sizes = bucket_sizes(max_rows)
    for num_rows in range(1, max_rows + 1):
        assert bucket_for(sizes, num_rows) == min(s for s in sizes if s >= num_rows)
        assert bucket_for(sizes, num_rows) <= max(8, 1.5 * num_rows)


def test_nothing_and_too_much_have_no_bucket():
    sizes = bucket_sizes(5)
    assert bucket_for(sizes, 0) is None
    assert bucket_for(sizes, 6) is None
