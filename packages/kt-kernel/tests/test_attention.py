# SPDX-License-Identifier: Apache-2.0
"""Paged attention: arithmetic, and that pages, chunks, threads and company leave no trace."""

import numpy as np
import pytest

from kt_kernel import Stream, ThreadPool

from . import reference
from .cases import ATTENTION, KV_DTYPES, LONG_ATTENTION, ROWS, AttentionCase
from .paged import PagedKv


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("case", ATTENTION, ids=range(len(ATTENTION)))
def test_attention_matches(stream, case, dtype, rng):
    kv = PagedKv(case, rng, dtype)
    reference.assert_close(kv.attend(stream), kv.expected())


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("case", LONG_ATTENTION, ids=range(len(LONG_ATTENTION)))
def test_attention_matches_over_thousands_of_keys(stream, case, dtype, rng):
    kv = PagedKv(case, rng, dtype)
    reference.assert_close(kv.attend(stream), kv.expected())


@pytest.mark.parametrize("group", range(1, 17))
def test_attention_matches_for_every_group_and_number_of_rows(stream, group, rng):
    for rows in ROWS:
        kv = PagedKv(AttentionCase(2 * group, 2, 20, 3, ((13, rows),), 0, group % 2 == 0), rng)
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


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_attention_in_chunks_is_attention_at_once(stream, dtype, window, rng):
    """Chunked prefill, token by token and one shot give the same bits; so does other company."""
    kv = PagedKv(AttentionCase(4, 2, 16, 8, ((0, 75), (20, 4)), window, True), rng, dtype)
    whole = kv.attend(stream)
    for size in (1, 2, 7, 31, 64):
        parts = [kv.rows(0, i, min(i + size, 75)).attend(stream) for i in range(0, 75, size)]
        assert np.array_equal(np.concatenate(parts), whole[:75]), f"chunks of {size}"
    assert np.array_equal(kv.rows(1, 0, 4).attend(stream), whole[75:])


@pytest.mark.parametrize("window", [0, 600])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 1, 40), (2, 2, 16)])
def test_split_keys_leave_no_trace(target, pool, heads, kv_heads, head_dim, window, rng):
    """One token alone has its keys split over workers; among 1100 rows it has not; same bits."""
    case = AttentionCase(heads, kv_heads, head_dim, 16, ((0, 1100),), window)
    kv = PagedKv(case, rng)
    stream = Stream(pool)
    whole = kv.attend(stream)
    for row in (0, 63, 64, 511, 512, 600, 1023, 1024, 1099):
        assert np.array_equal(kv.rows(0, row, row + 1).attend(stream), whole[row : row + 1])
    last = kv.rows(0, 1090, 1100)
    for threads in (1, 3, 5):
        assert np.array_equal(last.attend(Stream(ThreadPool(threads))), whole[1090:])


def test_keys_outside_the_window_are_not_touched(stream, rng):
    """Neither their pages, which may be anything, nor their values, which may be NaN."""
    kv = PagedKv(AttentionCase(4, 2, 16, 4, ((1000, 3),), 9), rng)
    expected = kv.attend(stream)
    kv.block_table[0, : (1000 - 8) // 4] = -1
    kv.v_cache[kv.block_table[0, (1000 - 8) // 4 - 1]] = np.nan
    assert np.array_equal(kv.attend(stream), expected)


def test_a_wide_window_is_none(stream, rng):
    kv = PagedKv(ATTENTION[2], rng)
    expected = kv.attend(stream)
    kv.window = 2**31 - 1
    assert np.array_equal(kv.attend(stream), expected)


def test_a_sink_takes_its_share(stream, rng):
    """A sink as heavy as all keys halves the output; one of -infinity changes no bit."""
    kv = PagedKv(AttentionCase(4, 2, 16, 4, ((0, 1),)), rng)
    alone = kv.attend(stream)
    score = (kv.q[0] * kv.keys[0][0].repeat(2, axis=0)).sum(-1) * kv.scale
    kv.sinks = score.astype(np.float32)
    np.testing.assert_allclose(kv.attend(stream), alone / 2, rtol=1e-5)
    kv.sinks = np.full(4, -np.inf, np.float32)
    assert np.array_equal(kv.attend(stream), alone)


def test_attention_with_sinks_is_that_of_gpt_oss(pool, rng):
    torch = pytest.importorskip("torch")
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    window, kv = 20, PagedKv(AttentionCase(8, 2, 64, 16, ((0, 50),), 20, True), rng)
    q, k, v = (torch.from_numpy(x).transpose(0, 1)[None] for x in (kv.q, kv.keys[0], kv.values[0]))
    i, j = np.arange(50)[:, None], np.arange(50)[None]
    mask = np.where((j <= i) & (j > i - window), 0, -np.inf).astype(np.float32)
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups = torch.from_numpy(kv.sinks), 4
    expected, _ = gpt_oss.eager_attention_forward(
        module, q, k, v, torch.from_numpy(mask)[None, None], kv.scale
    )
    np.testing.assert_allclose(kv.attend(Stream(pool)), expected[0].numpy(), atol=2e-6)


def test_attention_keeps_a_later_key_from_earlier_queries(stream, rng):
    """Rows of one tile see the same packed block, up to their own position."""
    kv = PagedKv(AttentionCase(4, 2, 16, 4, ((3, 20),)), rng)
    clean = kv.attend(stream)
    for cache in (kv.k_cache, kv.v_cache):
        cache[kv.block_table[0, 3], 1] = np.nan  # token 13, row 10
    out = kv.attend(stream)
    assert np.array_equal(out[:10], clean[:10])
    assert np.isnan(out[10:]).all()


def test_a_nan_scale_poisons_its_key(stream, rng):
    kv = PagedKv(AttentionCase(4, 2, 16, 4, ((3, 20),)), rng, "int8")
    clean = kv.attend(stream)
    kv.v_scales[kv.block_table[0, 3], 1, 0] = np.nan
    out = kv.attend(stream)
    assert np.isnan(out[10:, :2]).all()
    assert np.array_equal(out[:10], clean[:10])
    assert np.array_equal(out[:, 2:], clean[:, 2:])


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
        (lambda kv: setattr(kv, "window", -1), "window"),
        (lambda kv: setattr(kv, "sinks", np.zeros(3, np.float32)), "sinks"),
        (lambda kv: setattr(kv, "k_scales", np.zeros(3, np.float32)), "k_scales"),
        (lambda kv: setattr(kv, "k_cache", kv.k_cache.view(np.int8)), "v_cache"),
    ],
)
def test_attention_refuses_bad_bookkeeping(stream, change, message, rng):
    kv = PagedKv(ATTENTION[1], rng)
    change(kv)
    with pytest.raises(ValueError, match=rf"^\[attention\] .*({message}).*; got "):
        kv.attend(stream)


def test_int8_caches_need_both_scales(stream, rng):
    kv = PagedKv(ATTENTION[1], rng, "int8")
    kv.v_scales = None
    with pytest.raises(
        ValueError, match=r"^\[attention\] .*scales must be arrays for int8.*; got "
    ):
        kv.attend(stream)
