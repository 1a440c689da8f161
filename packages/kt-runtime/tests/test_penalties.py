# SPDX-License-Identifier: Apache-2.0
"""Bias and penalties against the definitions of OpenAI's API. transformers' are in
test_sampler.py."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.core import SamplingParams
from kt_runtime.exec.penalties import LogitAdjuster, TokenCounts


@given(prompt=st.lists(st.integers(0, 50), min_size=1), output=st.lists(st.integers(0, 50)))
def test_counts_are_those_of_the_whole_history(prompt, output):
    counts = TokenCounts(prompt)
    for token_id in output:
        counts.add(token_id)
    generated = Counter(output)
    expected = {token: generated[token] for token in {*prompt, *output}}
    assert dict(zip(counts.token_ids.tolist(), counts.num_generated, strict=True)) == expected


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.25), (1.5, -2.0)])
def test_presence_and_frequency_are_taken_off_the_output_s_tokens(presence, frequency):
    logits = np.linspace(-3, 3, 20).astype(np.float32)
    sampling = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    adjuster = LogitAdjuster(sampling, [1, 2, 3], [], 20)
    np.testing.assert_array_equal(adjuster.adjusted(logits, 0), logits)
    for token_id in (3, 9, 9, 9):
        adjuster.note(token_id)
    expected = logits.copy()
    expected[3] -= presence + frequency
    expected[9] -= presence + 3 * frequency
    np.testing.assert_allclose(adjuster.adjusted(logits, 4), expected, rtol=1e-6)


def test_bias_is_added_before_the_penalty_scales():
    sampling = SamplingParams(logit_bias={4: 10, 5: -100}, repetition_penalty=2.0)
    adjusted = LogitAdjuster(sampling, [4], [], 8).adjusted(np.full(8, -2, np.float32), 0)
    np.testing.assert_array_equal(adjusted, [-2, -2, -2, -2, 4, -102, -2, -2])


@pytest.mark.parametrize(
    ("settings", "forbidden"),
    [({}, [3, 5]), ({"ignore_eos": True}, [5]), ({"stop_token_ids": [99, -1]}, [3])],
)
def test_until_min_tokens_nothing_can_end_the_request(settings, forbidden):
    sampling = SamplingParams(**({"min_tokens": 2, "stop_token_ids": [5]} | settings))
    adjuster = LogitAdjuster(sampling, [0], [3], 8)
    logits = np.zeros(8, np.float32)
    for num_generated in (0, 1):
        adjusted = adjuster.adjusted(logits, num_generated)
        assert np.flatnonzero(adjusted == -np.inf).tolist() == forbidden
    assert adjuster.adjusted(logits, 2) is logits


def test_without_a_wish_nothing_is_copied():
    logits = np.zeros(8, np.float32)
    assert LogitAdjuster(SamplingParams(), [1], [3], 8).adjusted(logits, 0) is logits
