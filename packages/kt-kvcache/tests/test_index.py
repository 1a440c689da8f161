# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache.chain import Chain
from kt_kvcache.eviction import LruPolicy
from kt_kvcache.index import PageIndex, index_type
from kt_kvcache.native import HAS_CORE
from kt_kvcache.page import PageState

NS_KEY = bytes(32)


class Publishing:
    """Of an index: records what it frees and publishes whole chains."""

    def __init__(self):
        self.freed = []
        super().__init__(LruPolicy(), self.freed.append)

    def add(self, tokens, first_id):
        """Publishes one page per token, ids from `first_id`; only the last keeps our pin."""
        chain = make(tokens)
        pages = [self.publish(chain, i, first_id + i)[0] for i in range(len(tokens))]
        for page in pages[:-1]:
            self.unpin(page)
        return pages


def make(tokens, ns_key=NS_KEY):
    chain = Chain(ns_key, 1)
    chain.extend(tokens)
    return chain


class Index(Publishing, PageIndex):
    pass


class NativeIndex(Publishing, index_type()):
    pass


@pytest.fixture(params=[Index, NativeIndex] if HAS_CORE else [Index])
def index(request):
    index = request.param()
    index.root(NS_KEY)
    return index


def found(index, tokens):
    return index.match(index.root(NS_KEY), make(tokens), len(tokens))[1]


def test_match_is_the_longest_common_prefix(index):
    index.add([1, 2, 3], 10)
    assert found(index, [1, 2, 3, 4]) == [10, 11, 12]
    assert found(index, [1, 2, 4]) == [10, 11]
    assert found(index, [2]) == []
    assert index.match(index.root(NS_KEY), make([1, 2, 3]), 1)[1] == [10]


def test_a_page_without_its_parent_is_not_published(index):
    chain = make([1, 2])
    assert index.publish(chain, 1, 0) == (None, PageState.UNLINKED)
    assert index.num_evictable == 0
    assert list(index.by_hash) == [NS_KEY]


def test_the_first_of_two_equal_pages_stays(index):
    first, state = index.publish(make([1]), 0, 0)
    assert state is PageState.PUBLISHED
    assert index.publish(make([1]), 0, 1) == (first, PageState.PRESENT)
    assert (first.page_id, first.pins) == (0, 2)


def test_a_pin_covers_everything_above_and_only_that(index):
    index.add([1, 2, 3], 0)
    right = index.add([1, 2, 4], 10)[-1]
    index.unpin(right)
    assert index.num_evictable == 1
    index.evict()
    assert found(index, [1, 2, 4]) == [0, 1]
    assert found(index, [1, 2, 3]) == [0, 1, 2]


def test_eviction_takes_leaves_first_then_their_parents(index):
    old, new = index.add([1, 2, 3], 0), index.add([5], 9)
    index.unpin(old[-1])
    index.unpin(new[-1])
    assert index.num_evictable == 4
    for _ in range(4):
        index.evict()
    assert index.freed == [2, 1, 0, 9]
    assert index.num_evictable == len(index.policy) == 0


def test_a_trunk_kept_alive_by_a_later_use_outlives_older_branches(index):
    trunk = index.add([1, 2], 0)
    branch = index.add([7], 5)
    index.unpin(trunk[-1])
    index.unpin(branch[-1])
    index.pin(trunk[0])  # used once more, without its child
    index.unpin(trunk[0])
    for _ in range(3):
        index.evict()
    assert index.freed == [1, 5, 0]


def test_a_hash_that_meets_other_tokens_is_a_miss(index, monkeypatch):
    class Colliding:
        def __init__(self, first_block, page_tokens):
            self.page_bytes = 4 * page_tokens

        def append(self, tokens, hashes):
            hashes += b"\xff" * 32 * (len(tokens) // self.page_bytes)

    monkeypatch.setattr("kt_kvcache.chain.open_run", Colliding)
    index.add([1], 0)
    assert found(index, [1]) == [0]
    assert found(index, [2]) == []
    assert index.publish(make([2]), 0, 1) == (None, PageState.UNLINKED)
    assert found(index, [1, 1]) == [0]  # the same page under itself is not its own child
    assert index.num_mismatched == 3


def test_drop_takes_a_subtree_and_frees_what_nobody_holds(index):
    pages = index.add([1, 2, 3], 0)
    side = index.add([1, 2, 4], 10)
    index.unpin(pages[-1])
    index.unpin(side[-1])
    assert index.drop(pages[1]) == 3
    assert sorted(index.freed) == [1, 2, 12]
    assert found(index, [1, 2, 3]) == [0]


def test_a_dropped_page_keeps_its_slot_and_its_parents_while_pinned(index):
    pages = index.add([1, 2, 3], 0)
    assert index.drop(pages[1]) == 2
    assert found(index, [1, 2, 3]) == [0]
    assert (index.freed, index.num_evictable) == ([], 0)
    index.unpin(pages[-1])
    assert index.freed == [2, 1]
    assert (index.num_evictable, index.detached) == (1, set())


def test_a_dropped_prefix_can_be_published_again_beside_its_old_pages(index):
    old = index.add([1, 2], 0)
    index.drop(old[0])
    new = index.add([1, 2], 10)
    assert found(index, [1, 2]) == [10, 11]
    index.unpin(old[-1])
    assert index.freed == [1, 0]
    assert found(index, [1, 2]) == [10, 11]
    assert new[0].pins == 1


def test_dropping_a_root_empties_its_namespace_only(index):
    other = bytes(31) + b"\x01"
    index.root(other)
    index.publish(make([1], other), 0, 7)
    pages = index.add([1, 2], 0)
    root = index.root(NS_KEY)
    assert index.drop(root) == 2
    assert not root.attached
    assert index.match(index.root(other), make([1], other), 1)[1] == [7]
    index.unpin(pages[-1])
    assert index.freed == [1, 0]
    assert index.root(NS_KEY) is not root
