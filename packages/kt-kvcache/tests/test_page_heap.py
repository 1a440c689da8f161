# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache.page import CachedPage
from kt_kvcache.page_heap import PageHeap


def make(n):
    return [CachedPage(b"", None, b"", i) for i in range(n)]


def test_pages_leave_by_key_and_equal_keys_by_age():
    pages, heap = make(4), PageHeap()
    for page, key in zip(pages, (2, 1, 2, 0.5), strict=True):
        heap.add(page, key)
    assert heap.first() is pages[3]
    assert [heap.pop().page_id for _ in pages] == [3, 1, 0, 2]
    assert len(heap) == 0


def test_a_page_may_leave_from_anywhere_and_return_with_another_key():
    (one, two), heap = make(2), PageHeap()
    heap.add(one, 1)
    heap.add(two, 2)
    heap.remove(one)
    assert one not in heap
    assert heap.first() is two
    heap.add(one, 3)
    assert [heap.pop(), heap.pop()] == [two, one]
    with pytest.raises(KeyError):
        heap.remove(one)


def test_removed_pages_are_not_piled_up():
    (hot, cold), heap = make(2), PageHeap()
    heap.add(cold, 0)
    for key in range(2000):
        heap.add(hot, key)
        heap.remove(hot)
    assert len(heap._heap) < 100
    assert heap.pop() is cold
