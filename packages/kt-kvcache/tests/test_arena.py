# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from kt_kvcache.arena import Arena


def test_a_view_addresses_the_callers_bytes_without_a_copy():
    keys = np.arange(3 * 4, dtype=np.int16).reshape(3, 2, 2)
    values = np.zeros((3, 4), np.int16)
    arena = Arena([keys, values])
    assert (arena.num_layers, arena.num_pages, arena.page_stride_bytes) == (2, 3, 8)
    view = arena.view((2, 0), writable=True)
    assert view.num_bytes == 2 * 2 * 8
    assert view.page(0, 0).view(np.int16).tolist() == [8, 9, 10, 11]
    view.page(1, 1)[:] = 1
    assert values.tolist() == [[257] * 4, [0] * 4, [0] * 4]


def test_a_read_only_view_refuses_writes_and_sees_later_ones():
    arena = Arena.allocate(num_pages=2, num_layers=1, page_stride_bytes=4)
    reader = arena.view((1,), writable=False)
    with pytest.raises(ValueError, match="read-only"):
        reader.page(0, 0)[0] = 1
    arena.view((1,), writable=True).page(0, 0)[:] = 7
    assert reader.page(0, 0).tolist() == [7] * 4


def test_copy_moves_pages_in_order_within_and_between_arenas():
    source = Arena([np.arange(8, dtype=np.uint8).reshape(4, 2), np.full((4, 2), 9, np.uint8)])
    sink = Arena.allocate(num_pages=6, num_layers=2, page_stride_bytes=2)
    source.view((3, 1), writable=False).copy_to(sink.view((0, 5), writable=True))
    copied = sink.view(tuple(range(6)), writable=False).layer_buffers
    assert copied[0].tolist() == [[6, 7], [0, 0], [0, 0], [0, 0], [0, 0], [2, 3]]
    assert copied[1].sum(axis=1).tolist() == [18, 0, 0, 0, 0, 18]
    sink.view((0, 5), writable=False).copy_to(sink.view((5, 0), writable=True))
    assert copied[0][[0, 5]].tolist() == [[2, 3], [6, 7]]


@pytest.mark.parametrize(("num_pages", "num_layers", "stride"), [(1, 2, 2), (2, 1, 2), (2, 2, 4)])
def test_copy_between_views_of_different_shapes_is_refused(num_pages, num_layers, stride):
    source = Arena.allocate(4, 2, 2).view((0, 1), writable=False)
    sink = Arena.allocate(4, num_layers, stride).view(tuple(range(num_pages)), writable=True)
    with pytest.raises(ValueError, match=r"\[kvstore.copy_to\] sink must have .* \(2, 2, 2\); got"):
        source.copy_to(sink)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([], "must not be empty"),
        ([np.zeros(4, np.uint8)], r"layer 0 must be .*; got uint8 \(4,\)"),
        ([np.zeros((4, 0), np.uint8)], r"layer 0 must be .*; got uint8 \(4, 0\)"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 8), np.uint8)[:, ::2]], "layer 1 must be"),
        ([np.frombuffer(bytes(8), np.uint8).reshape(4, 2)], "layer 0 must be a writable"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], r"must have one .*; got \[\(4, 32\), \(5, 32\)\]"),
        ([np.zeros((4, 4)), np.zeros((4, 5))], r"got \[\(4, 32\), \(4, 40\)\]"),
    ],
)
def test_buffers_that_are_no_pages_are_refused(buffers, message):
    with pytest.raises(ValueError, match=message):
        Arena(buffers)


def test_an_empty_arena_is_refused():
    with pytest.raises(ValueError, match=r"\[kvstore.arena\] num_layers must be .*; got 0"):
        Arena.allocate(1, 0, 1)
