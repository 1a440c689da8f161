# SPDX-License-Identifier: Apache-2.0
"""Paged attention: arithmetic, and that pages, chunks, threads and company leave no trace."""

import numpy as np
import pytest

from kt_kernel import Stream, ThreadPool

from . import reference
from .cases import ATTENTION, FLOAT_DTYPES, AttentionCase
from .paged import PagedKv


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("case", ATTENTION, ids=range(len(ATTENTION)))
def test_attention_matches(stream, case, dtype, rng):
    kv = PagedKv(case, rng, dtype)
    reference.assert_close(kv.attend(stream), kv.expected())


def test_attention_survives_large_scores(stream, rng):
    """Softmax must subtract the maximum: these scores overflow the exponential."""
    kv = PagedKv(ATTENTION[1], rng)
    kv.q *= 200
    out = kv.attend(stream)
    assert np.isfinite(out).all()
    reference.assert_close(out, kv.expected())


@pytest.mark.parametrize("case", ATTENTION[1:4], ids=range(1, 4))
def test_attention_does_not_notice_page_size_page_order_or_threads(target, pool, case, rng):
    kv = PagedKv(case, rng)
    expected = kv.attend(Stream(pool))
    for page_size in (1, 3, 128):
        assert np.array_equal(kv.repaged(page_size, rng).attend(Stream(pool)), expected)
    for threads in (1, 3):
        assert np.array_equal(kv.attend(Stream(ThreadPool(threads))), expected)


def test_attention_in_chunks_is_attention_at_once(stream, rng):
    """Chunked prefill, token by token and one shot give the same bits; so does other company."""
    kv = PagedKv(AttentionCase(4, 2, 16, 8, ((0, 75), (20, 4))), rng)
    whole = kv.attend(stream)
    for size in (1, 2, 7, 31, 64):
        parts = [kv.rows(0, i, min(i + size, 75)).attend(stream) for i in range(0, 75, size)]
        assert np.array_equal(np.concatenate(parts), whole[:75]), f"chunks of {size}"
    assert np.array_equal(kv.rows(1, 0, 4).attend(stream), whole[75:])


def test_attention_keeps_a_bad_query_and_a_bad_sequence_to_themselves(stream, rng):
    kv = PagedKv(ATTENTION[1], rng)
    clean = kv.attend(stream)
    kv.q[3] = np.nan
    kv.v_cache[kv.block_table[2, 0]] = np.inf
    out = kv.attend(stream)
    bad = np.zeros(len(out), bool)
    bad[3] = bad[kv.cu_seqlens_q[2] :] = True
    assert not np.isfinite(out[bad]).all(axis=(1, 2)).any()
    assert np.array_equal(out[~bad], clean[~bad])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kv: kv.seq_lens.__setitem__(0, 0), "seq_lens"),
        (lambda kv: kv.seq_lens.__setitem__(0, 10**6), "seq_lens"),
        (lambda kv: kv.seq_lens.__setitem__(0, -5), "seq_lens"),
        (lambda kv: kv.block_table.__setitem__((0, 0), 10**6), "block_table"),
        (lambda kv: kv.block_table.__setitem__((0, 0), -1), "block_table"),
        (lambda kv: kv.cu_seqlens_q.__setitem__(0, 1), "cu_seqlens_q"),
        (lambda kv: kv.cu_seqlens_q.__setitem__(1, 100), "seq_lens|cu_seqlens_q"),
        (lambda kv: kv.cu_seqlens_q.__setitem__(-1, 0), "cu_seqlens_q"),
        (lambda kv: setattr(kv, "seq_lens", kv.seq_lens[:2].copy()), "seq_lens"),
        (lambda kv: setattr(kv, "q", kv.q[:, :3].copy()), "num_heads|heads"),
        (lambda kv: setattr(kv, "v_cache", kv.v_cache[:-1].copy()), "v_cache"),
    ],
)
def test_attention_refuses_bad_bookkeeping(stream, change, message, rng):
    kv = PagedKv(ATTENTION[1], rng)
    change(kv)
    with pytest.raises(ValueError, match=rf"^\[attention\] .*({message}).*; got "):
        kv.attend(stream)
