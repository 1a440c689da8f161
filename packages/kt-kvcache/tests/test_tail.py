# SPDX-License-Identifier: Apache-2.0
"""Part of a page found, pinned, copied; pages of 4 tokens whose bytes are their token ids."""

import numpy as np
import pytest

from kt_kvcache import Arena, Extra, Geometry, Group, KVStore, OutOfPages, StaleHandle, StoreConfig
from kt_kvcache.chain import Chain
from kt_kvcache.tail import common_tokens

PAGE_TOKENS = 4


@pytest.fixture
def store():
    arena = Arena.allocate(num_pages=8, strides=[PAGE_TOKENS] * 2)
    with KVStore.open(config=StoreConfig(8, PAGE_TOKENS), arena=arena) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def space(store, identity):
    return store.space(identity, Geometry(PAGE_TOKENS, (Group("kv", 2, PAGE_TOKENS),)))


@pytest.fixture
def put(space):
    def put(tokens, extras=()):
        chain = space.chain(tokens, extras)
        with space.acquire(chain) as lease:
            missing = chain.num_pages - lease.num_pages
            with space.reserve(chain, lease.num_pages, missing) as writer:
                for i in range(missing):
                    start = (lease.num_pages + i) * PAGE_TOKENS
                    for layer in range(2):
                        writer.view().page(layer, i)[:] = tokens[start : start + PAGE_TOKENS]
                writer.commit(missing, after=None)

    return put


def tail_of(space, tokens, max_tokens=None, extras=()):
    """(tokens in full pages, tokens in the tail)"""
    with space.acquire(space.chain(tokens, extras), max_tokens, tail=True) as lease:
        return lease.num_tokens, 0 if lease.tail is None else lease.tail.num_tokens


def test_the_child_with_the_longest_common_prefix_is_found_among_many(space, put):
    for tokens in ([1, 2, 3, 4], [1, 2, 7, 7], [1, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 9]):
        put(tokens)
    assert tail_of(space, [1, 2, 3, 0]) == (0, 3)
    assert tail_of(space, [1, 2, 8, 0]) == (0, 2)
    assert tail_of(space, [1, 2, 7, 8, 5, 5]) == (0, 3)
    assert tail_of(space, [1, 9]) == (0, 1)
    assert tail_of(space, [9, 2, 3, 4]) == (0, 0)
    assert tail_of(space, []) == (0, 0)


def test_a_tail_continues_the_full_pages_and_ends_with_the_chain(space, put):
    put([1, 2, 3, 4, 5, 6, 7, 8])
    assert tail_of(space, [1, 2, 3, 4, 5, 6]) == (4, 2)
    assert tail_of(space, [1, 2, 3, 4, 5, 6, 0, 8]) == (4, 2)
    assert tail_of(space, [1, 2, 3, 4, 5, 6, 7, 8]) == (8, 0)
    assert tail_of(space, [1, 2, 3, 5, 5, 6, 7, 8]) == (0, 3)


@pytest.mark.parametrize(
    ("max_tokens", "found"), [(0, (0, 0)), (3, (0, 3)), (4, (4, 0)), (7, (4, 3)), (8, (8, 0))]
)
def test_max_tokens_cuts_a_page_that_is_cached_in_full(space, put, max_tokens, found):
    put([1, 2, 3, 4, 5, 6, 7, 8])
    assert tail_of(space, [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens) == found


def test_extras_must_agree_up_to_the_end_of_what_is_shared(space, put):
    put([0, 0, 0, 0], [Extra(1, 1, b"cat"), Extra(3, 1, b"dog")])
    cat, dog = Extra(1, 1, b"cat"), Extra(3, 1, b"dog")
    for extras, num_tokens in (
        ([cat, Extra(3, 1, b"cow")], 3),
        ([cat, Extra(3, 2, b"dog")], 3),
        ([cat, Extra(2, 1, b"dog")], 2),
        ([cat], 3),
        ([dog], 1),
        ([Extra(0, 1, b"cat")], 0),
        ([], 1),
    ):
        assert tail_of(space, [0, 0, 0, 0, 5], None, extras) == (0, num_tokens)
    assert tail_of(space, [0, 0], None, [cat]) == (0, 2)
    assert tail_of(space, [0, 0], None, []) == (0, 1)


def test_a_copied_tail_holds_the_tokens_it_says_and_is_released(space, put, store):
    put([1, 2, 3, 4, 5, 6, 7, 8])
    chain = space.chain([1, 2, 3, 4, 5, 6, 9, 9])
    with space.acquire(chain, tail=True) as lease:
        assert store.stats().pinned_pages == 2
        assert lease.tail.page_id not in lease.page_ids
        with space.reserve(chain, 1, 1) as writer:
            assert writer.copy_tail(lease) == 2
            assert [int(x) for x in writer.view().page(1, 0)[:2]] == [5, 6]
            assert lease.tail is None
            assert lease.tail_view().page_ids == ()
            assert store.stats().cached_pages == 1  # the tail's page
            assert lease.page_ids == (0,)
            assert writer.copy_tail(lease) == 0
    assert store.stats().counters.tail_tokens == 2


def test_a_pinned_tail_is_not_evicted_and_a_released_one_is(space, put, store):
    put([1, 2, 3, 4])
    with space.acquire(space.chain([1, 2]), tail=True) as lease:
        with pytest.raises(OutOfPages):
            space.reserve(space.chain([]), 0, 8)
        lease.release_tail()
        lease.release_tail()
        space.reserve(space.chain([]), 0, 8).release()
    assert store.stats().free_pages == 8


def test_no_tail_is_pinned_unless_asked_for(space, put, store):
    put([1, 2, 3, 4])
    with space.acquire(space.chain([1, 2])) as lease:
        assert lease.tail is None
        assert store.stats().pinned_pages == 0


def test_a_tail_outlives_the_drop_of_its_chain(space, put, store):
    put([1, 2, 3, 4, 5, 6, 7, 8])
    chain = space.chain([1, 2, 3, 4, 5])
    with space.acquire(chain, tail=True) as lease:
        assert space.drop(space.chain([1, 2, 3, 4, 5, 6, 7, 8])) == 1
        with space.reserve(chain, 1, 6) as writer:
            assert lease.tail.page_id not in writer.page_ids
            assert writer.copy_tail(lease) == 1
            assert writer.view().page(0, 0)[0] == 5
    assert store.stats().free_pages == 7


def test_only_the_page_after_the_prefix_takes_a_tail(space, put):
    put([1, 2, 3, 4, 5, 6, 7, 8])
    chain = space.chain([1, 2, 3, 4, 5, 6, 9, 9])
    with space.acquire(chain, tail=True) as lease:
        with (
            space.reserve(chain, 0, 1) as writer,
            pytest.raises(ValueError, match=r"\[kvstore.tail\] the chain must follow the leased"),
        ):
            writer.copy_tail(lease)
        other = space.chain([1, 2, 3, 4, 5, 0, 0])
        with space.reserve(other, 1, 1) as writer:
            assert writer.copy_tail(lease) == 1  # of the writer's tokens, fewer than the lease's


def test_a_committed_page_takes_no_tail(space, put):
    put([1, 2, 3, 4])
    chain = space.chain([1, 2, 9, 9])
    with space.acquire(chain, tail=True) as lease, space.reserve(chain, 0, 1) as writer:
        writer.commit(1, after=None)
        with pytest.raises(ValueError, match="must not be committed; got 1 committed"):
            writer.copy_tail(lease)


def test_a_tail_of_a_released_lease_is_stale(space, put):
    put([1, 2, 3, 4])
    lease = space.acquire(space.chain([1]), tail=True)
    lease.release()
    with space.reserve(space.chain([1]), 0, 1) as writer:
        for use in (lambda: lease.tail, lease.tail_view, lambda: writer.copy_tail(lease)):
            with pytest.raises(StaleHandle, match="the lease must be open; got a released one"):
                use()


def test_common_tokens_equals_counting_them():
    random = np.random.default_rng(0)
    ns_key = bytes(32)
    for _ in range(300):
        one, other = Chain(ns_key, PAGE_TOKENS), Chain(ns_key, PAGE_TOKENS)
        # 256 and 65536: ids that differ in one byte only.
        left = random.choice([0, 1, 256, 65536], PAGE_TOKENS)
        right = random.choice([0, 1, 256, 65536], random.integers(0, PAGE_TOKENS + 1))
        one.extend(left)
        other.extend(right)
        same = left[: len(right)] == right
        expected = len(right) if same.all() else int(np.argmin(same))
        assert common_tokens(one.page_body(0), PAGE_TOKENS, other.fragment(0)) == expected
