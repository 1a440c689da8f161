# SPDX-License-Identifier: Apache-2.0
"""Log probabilities against float64 log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kt_runtime.exec.logprobs import PromptLogprobs, token_logprobs
from kt_runtime.exec.sampler import NonFiniteLogitsError


def rows_of(count: int, size: int = 3000) -> np.ndarray:
    return (np.random.default_rng(count).normal(size=(count, size)) * 4).astype(np.float32)


def reference(row: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(row).double(), 0).numpy()


def test_a_token_and_the_best_beside_it():
    for row in rows_of(5):
        expected = reference(row)
        got = token_logprobs(row, 17, 20)
        assert got.token_id == 17
        assert got.logprob == pytest.approx(expected[17], abs=1e-6)
        order = np.argsort(-expected, kind="stable")[:20]
        assert [i for i, _ in got.top] == order.tolist()
        np.testing.assert_allclose([v for _, v in got.top], expected[order], atol=1e-6)
        assert token_logprobs(row, 17, 0).top == ()


def test_ties_go_to_the_lower_id_and_forbidden_tokens_have_none():
    row = np.array([1, 3, 3, -np.inf, 3], np.float32)
    got = token_logprobs(row, 3, 2)
    assert [i for i, _ in got.top] == [1, 2]
    assert got.logprob == -np.inf


def test_extreme_logits_stay_numbers():
    row = np.array([3e38, -3e38, 0], np.float32)
    got = token_logprobs(row, 1, 1)
    assert got.top == ((0, 0.0),)
    assert got.logprob < -1e38


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [2, 3, 4]])
def test_a_prompt_s_are_the_same_in_any_chunks(chunks):
    ids = [5, 0, 7, 7, 2, 1, 9, 8, 3]
    rows = rows_of(9)
    gathered = PromptLogprobs(ids, 2)
    start = 0
    for size in chunks:
        gathered.add(rows[start : start + size], start)
        start += size
    whole = gathered.all()
    assert whole[0] is None
    assert whole[1:] == tuple(token_logprobs(rows[p], ids[p + 1], 2) for p in range(8))


def test_a_prompt_that_is_computed_again_is_counted_once():
    ids = [5, 0, 7, 7, 2]
    rows = rows_of(5)
    gathered = PromptLogprobs(ids, 0)
    gathered.add(rows[:3], 0)
    gathered.add(rows[:2], 0)
    gathered.add(rows[2:], 2)
    once = PromptLogprobs(ids, 0)
    once.add(rows, 0)
    assert gathered.all() == once.all()


def test_broken_logits_are_an_error():
    rows = rows_of(3)
    rows[1, 5] = np.nan
    with pytest.raises(NonFiniteLogitsError):
        PromptLogprobs([1, 2, 3], 0).add(rows, 0)
