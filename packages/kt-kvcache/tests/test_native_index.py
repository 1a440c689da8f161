# SPDX-License-Identifier: Apache-2.0
"""The core's walks against the index in Python; what both do is in test_index.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.chain import Chain, Extra
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.index import PageIndex, index_type
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page import CachedPage

pytestmark = pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")

if HAS_CORE:
    from kt_kvcache import _core

NS_KEY = bytes(32)
extras = st.none() | st.tuples(st.integers(0, 1), st.sampled_from([b"", b"a", b"\0", b"\0\0"]))
chains = st.lists(st.tuples(st.integers(0, 2), extras), min_size=1, max_size=6)


def make(parts):
    """A chain of pages of two tokens, each with at most one extra."""
    chain = Chain(NS_KEY, 2)
    for page, (token, extra) in enumerate(parts):
        given = [] if extra is None else [Extra(2 * page + 1, *extra)]
        chain.extend([token * 2**30, 7], given)
    return chain


@given(st.lists(chains, max_size=8), st.lists(chains, max_size=4), st.data())
def test_both_find_and_pin_the_same_pages(cached, asked, data):
    indices = [PageIndex(LruPolicy(), lambda _: None), index_type()(LruPolicy(), lambda _: None)]
    held = []
    for parts in cached:
        chain = make(parts)
        pages = []
        for index in indices:
            index.root(NS_KEY)
            tops = [index.publish(chain, i, 100 + i)[0] for i in range(chain.num_pages)]
            for page in tops[:-1]:
                index.unpin(page)
            pages.append(tops[-1])
        held.append(pages)
    for pages in held:
        if data.draw(st.booleans()):
            for index, page in zip(indices, pages, strict=True):
                index.unpin(page)
    for parts in asked:
        chain = make(parts)
        num_pages = data.draw(st.integers(0, chain.num_pages))
        found = []
        for index in indices:
            page, page_ids = index.match(index.root(NS_KEY), chain, num_pages)
            index.pin(page)
            found.append((page.hash, page_ids, index.num_mismatched))
        assert found[0] == found[1]
    states = [
        (
            index.num_evictable,
            {(page.hash, page.pins, page.last_used) for page in index.by_hash.values()},
            {page.hash for page in index.by_hash.values() if page in index.policy},
        )
        for index in indices
    ]
    assert states[0] == states[1]


def test_a_page_with_thousands_of_children_finds_each():
    index = index_type()(LruPolicy(), lambda _: None)
    root = index.root(NS_KEY)
    made = [make([(0, (0, str(i).encode()))]) for i in range(3000)]
    for i, chain in enumerate(made):
        index.publish(chain, 0, i)
    assert [index.match(root, chain, 1)[1] for chain in made] == [[i] for i in range(3000)]
    assert index.match(root, make([(0, (0, b"3000"))]), 1) == (root, [])


def test_only_pages_of_the_type_are_walked():
    class Other:
        __slots__ = CachedPage.__slots__

    pages = _core.CachedPages(CachedPage)
    root = CachedPage(NS_KEY, None, b"", -1)
    for stranger in (Other(), None, 5):
        with pytest.raises(TypeError):
            pages.pin(stranger)
    root.children.append(Other())
    with pytest.raises(TypeError):
        pages.match(root, bytearray(8), 2, {}, 1)
    root.children = ()
    with pytest.raises(TypeError, match="children must be a list"):
        pages.match(root, bytearray(8), 2, {}, 1)
    root.children = [CachedPage(b"", root, "body", 0)]
    with pytest.raises(TypeError, match="bodies must be bytes"):
        pages.match(root, bytearray(8), 2, {}, 1)
    with pytest.raises(TypeError, match="extras must be bytes"):
        pages.match(root, bytearray(8), 2, {0: "x"}, 1)
    del root.pins
    with pytest.raises(AttributeError):
        pages.pin(root)
    with pytest.raises(ValueError, match="a slot of each name; got parent"):
        _core.CachedPages(type("P", (), {"parent": 1}))


@pytest.mark.parametrize("arguments", [(0, 1), (2**32, 1), (2, 2), (2, -1)])
def test_pages_that_a_chain_does_not_have_are_refused(arguments):
    page_tokens, num_pages = arguments
    pages = _core.CachedPages(CachedPage)
    with pytest.raises(ValueError, match=r"\[kvstore.match\]"):
        pages.match(CachedPage(NS_KEY, None, b"", -1), bytearray(8), page_tokens, {}, num_pages)
