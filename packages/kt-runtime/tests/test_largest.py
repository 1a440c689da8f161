# SPDX-License-Identifier: Apache-2.0
"""The k largest of a row against a full stable sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.exec.largest import largest


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1, 20, 511, 5000, 20_000]),
    k=st.sampled_from([1, 2, 20, 300, 30_000]),
    distinct=st.sampled_from([1, 3, 100_000]),
    forbidden=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_it_is_the_head_of_a_stable_sort(seed, size, k, distinct, forbidden):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, distinct, size).astype(np.float32)
    values[rng.random(size) < forbidden] = -np.inf
    expected = np.argsort(-values, kind="stable")[:k]
    np.testing.assert_array_equal(largest(values, k), expected)
