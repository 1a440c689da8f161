# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from kt_kvcache.arena import Arena
from kt_kvcache.native import HAS_CORE


@pytest.fixture(params=["core", "python"])
def twin(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr("kt_kvcache.arena.HAS_CORE", False)
    elif not HAS_CORE:
        pytest.skip("no core in this installation")


def test_a_view_addresses_the_callers_bytes_without_a_copy():
    keys = np.arange(3 * 4, dtype=np.int16).reshape(3, 2, 2)
    values = np.zeros((3, 2), np.int16)
    arena = Arena([keys, values])
    assert (arena.num_layers, arena.num_pages, arena.strides) == (2, 3, (8, 4))
    view = arena.view((2, 0), writable=True)
    assert (view.strides, view.page_bytes, view.num_bytes) == ((8, 4), 12, 24)
    assert view.page(0, 0).view(np.int16).tolist() == [8, 9, 10, 11]
    view.page(1, 1)[:] = 1
    assert values.tolist() == [[257] * 2, [0] * 2, [0] * 2]


@pytest.mark.parametrize(
    ("layer", "i", "message"),
    [
        (0, -1, r"i must be an integer in \[0, 1\]; got -1"),
        (0, 2, r"i must be an integer in \[0, 1\]; got 2"),
        (2, 0, r"layer must be an integer in \[0, 1\]; got 2"),
        (-1, 0, r"layer must be an integer in \[0, 1\]; got -1"),
        (None, 0, r"layer must be .*; got None"),
        (0, True, r"i must be .*; got True"),
    ],
)
def test_no_page_is_counted_from_the_end(layer, i, message):
    view = Arena.allocate(4, [8, 8]).view((3, 1), writable=False)
    with pytest.raises(ValueError, match=rf"^\[kvstore\.page\] {message}$"):
        view.page(layer, i)


def test_a_read_only_view_refuses_writes_and_sees_later_ones():
    arena = Arena.allocate(num_pages=2, strides=[4])
    reader = arena.view((1,), writable=False)
    with pytest.raises(ValueError, match="read-only"):
        reader.page(0, 0)[0] = 1
    arena.view((1,), writable=True).page(0, 0)[:] = 7
    assert reader.page(0, 0).tolist() == [7] * 4


def test_copy_moves_pages_in_order_within_and_between_arenas(twin):
    source = Arena([np.arange(8, dtype=np.uint8).reshape(4, 2), np.full((4, 3), 9, np.uint8)])
    sink = Arena.allocate(num_pages=6, strides=[2, 3])
    source.view((3, 1), writable=False).copy_to(sink.view((0, 5), writable=True))
    copied = sink.view(tuple(range(6)), writable=False).layer_buffers
    assert copied[0].tolist() == [[6, 7], [0, 0], [0, 0], [0, 0], [0, 0], [2, 3]]
    assert copied[1].sum(axis=1).tolist() == [27, 0, 0, 0, 0, 27]
    sink.view((0, 5), writable=False).copy_to(sink.view((5, 0), writable=True))
    assert copied[0][[0, 5]].tolist() == [[2, 3], [6, 7]]


def test_copy_into_a_read_only_view_is_refused(twin):
    source, sink = Arena.allocate(2, [4]), Arena.allocate(2, [4])
    with pytest.raises(ValueError, match=r"read-only"):
        source.view((0,), writable=False).copy_to(sink.view((1,), writable=False))


def test_only_views_are_copied_to():
    view = Arena.allocate(1, [4]).view((0,), writable=True)
    with pytest.raises(ValueError, match=r"\[kvstore.copy_to\] sink must be a PageView; got nd"):
        view.copy_to(view.page(0, 0))


@pytest.mark.parametrize(("num_pages", "strides"), [(1, [2, 4]), (2, [2]), (2, [4, 2])])
def test_copy_between_views_of_different_shapes_is_refused(num_pages, strides):
    source = Arena.allocate(4, [2, 4]).view((0, 1), writable=False)
    sink = Arena.allocate(4, strides).view(tuple(range(num_pages)), writable=True)
    with pytest.raises(ValueError, match=r"sink must have .* = \(2, \(2, 4\)\); got"):
        source.copy_to(sink)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([], "must not be empty"),
        (np.zeros((1, 4, 4)), r"\[kvstore.arena\] layer_buffers must be a Sequence; got ndarray"),
        ([[1, 2]], "layer 0 must be a numpy array of plain bytes; got list"),
        ([np.zeros((4, 4), object)], "plain bytes; got object"),
        ([np.zeros(4, np.uint8)], r"layer 0 must be .*; got uint8 \(4,\)"),
        ([np.zeros((4, 0), np.uint8)], r"layer 0 must be .*; got uint8 \(4, 0\)"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 8), np.uint8)[:, ::2]], "layer 1 must be"),
        ([np.frombuffer(bytes(8), np.uint8).reshape(4, 2)], "layer 0 must be a writable"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], r"must have one num_pages; got \[4, 5\]"),
    ],
)
def test_buffers_that_are_no_pages_are_refused(buffers, message):
    with pytest.raises(ValueError, match=message):
        Arena(buffers)


@pytest.mark.parametrize(
    ("num_pages", "strides", "message"),
    [
        (0, [1], r"\[kvstore.arena\] num_pages must be .*; got 0"),
        (1, [4, 0], r"\[kvstore.arena\] stride must be .*; got 0"),
        (1, 4, r"\[kvstore.arena\] strides must be a Sequence; got int"),
        (1, [], "layer_buffers must not be empty"),
    ],
)
def test_an_empty_arena_is_refused(num_pages, strides, message):
    with pytest.raises(ValueError, match=message):
        Arena.allocate(num_pages, strides)
