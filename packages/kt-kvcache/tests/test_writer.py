# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache import PageState, StaleHandle

RESERVED, PUBLISHED = PageState.RESERVED, PageState.PUBLISHED
PRESENT, UNLINKED = PageState.PRESENT, PageState.UNLINKED


def test_a_page_is_invisible_until_committed_and_stays_after_release(space, store):
    chain = space.chain([1, 2, 3, 4])
    with space.reserve(chain, 0, 3) as writer:
        assert space.probe(chain).num_pages == 0
        assert writer.commit(1, after=None) == (PUBLISHED,)
        assert space.probe(chain).num_pages == 1
        assert writer.commit(1, after=None) == (PUBLISHED,)
        assert space.probe(chain).num_pages == 2
        assert writer.states == (PUBLISHED, PUBLISHED, RESERVED)
        assert writer.num_committed == 2
    stats = store.stats()
    assert (stats.cached_pages, stats.free_pages) == (2, 6)


def test_the_chain_may_grow_between_reserve_and_commit(space):
    chain = space.chain([1])
    with space.reserve(chain, 0, 2) as writer:
        with pytest.raises(ValueError, match=r"must cover 1 full pages; got 0 \(1 tokens\)"):
            writer.commit(1, after=None)
        chain.extend([2, 3, 4])
        writer.commit(2, after=None)
    assert space.probe(space.chain([1, 2, 3, 4])).num_tokens == 4


def test_commit_takes_no_more_pages_than_are_left(space):
    with space.reserve(space.chain([1, 2, 3, 4]), 0, 2) as writer:
        writer.commit(1, after=None)
        for n in (2, -1):
            with pytest.raises(ValueError, match=rf"n must be an integer in \[0, 1\]; got {n}"):
                writer.commit(n, after=None)
        assert writer.commit(0, after=None) == ()
        assert writer.num_committed == 1


def test_commit_makes_the_caller_say_when_the_bytes_are_written(space):
    with space.reserve(space.chain([1, 2]), 0, 1) as writer, pytest.raises(TypeError):
        writer.commit(1)


def test_nothing_is_published_before_the_event_has_happened(space):
    chain = space.chain([1, 2])
    seen = []

    class Event:
        def synchronize(self):
            seen.append(space.probe(chain).num_pages)

    with space.reserve(chain, 0, 1) as writer:
        writer.commit(1, after=Event())
    assert seen == [0]
    assert space.probe(chain).num_pages == 1


def test_nothing_is_published_if_the_work_before_the_event_failed(space, store):
    chain = space.chain([1, 2])

    class Event:
        def synchronize(self):
            raise RuntimeError("kernel failed")

    with space.reserve(chain, 0, 1) as writer:
        with pytest.raises(RuntimeError, match="kernel failed"):
            writer.commit(1, after=Event())
        assert writer.states == (RESERVED,)
    assert store.stats().free_pages == 8


def test_a_page_published_by_another_is_reported_and_stays_private(space, store, fill):
    chain = space.chain([1, 2, 3, 4])
    with space.reserve(chain, 0, 2) as writer, fill([1, 2]) as other:
        assert writer.commit(2, after=None) == (PRESENT, PUBLISHED)
        with space.acquire(chain) as lease:
            assert lease.page_ids == (other.page_ids[0], writer.page_ids[1])
        assert store.stats().reserved_pages == 1
    assert store.stats().free_pages == 6
    assert store.stats().counters.present_pages == 1


def test_a_present_page_is_pinned_for_its_children_to_come(space, store, fill):
    other = fill([1, 2])
    chain = space.chain([1, 2, 3, 4])
    writer = space.reserve(chain, 0, 2)
    writer.commit(1, after=None)
    other.release()
    with space.reserve(space.chain([]), 0, 5):  # would evict the page if it could
        assert writer.commit(1, after=None) == (PUBLISHED,)
    writer.release()
    assert space.probe(chain).num_pages == 2


def test_a_page_whose_parent_is_gone_stays_private(space, store):
    chain = space.chain([1, 2, 3, 4])
    with space.reserve(chain, 1, 1) as writer:
        assert writer.commit(1, after=None) == (UNLINKED,)
        assert len(writer.page_ids) == 1
    assert store.stats().free_pages == 8
    assert store.stats().counters.unlinked_pages == 1


def test_writers_continue_each_other(space, fill):
    chain = space.chain([1, 2])
    with space.reserve(chain, 0, 1) as first, space.reserve(chain, 1, 1) as second:
        first.commit(1, after=None)
        chain.extend([3, 4])
        assert second.first_page == 1
        assert second.commit(1, after=None) == (PUBLISHED,)
        first.release()
        with space.reserve(space.chain([]), 0, 6):
            assert space.probe(chain).num_pages == 2  # the second pins its prefix


@pytest.mark.parametrize("end", ["release", "abort"])
def test_both_ends_keep_what_is_published_and_free_the_rest(space, store, end):
    writer = space.reserve(space.chain([1, 2, 3, 4]), 0, 3)
    writer.commit(1, after=None)
    getattr(writer, end)()
    stats = store.stats()
    assert (stats.cached_pages, stats.free_pages) == (1, 7)
    with pytest.raises(StaleHandle, match=r"\[kvstore.commit\] the writer must be open"):
        writer.commit(1, after=None)


def test_a_release_while_waiting_for_the_event_publishes_nothing(space, store):
    writer = space.reserve(space.chain([1, 2]), 0, 1)

    class Event:
        def synchronize(self):
            writer.release()

    with pytest.raises(StaleHandle, match="the writer must be open"):
        writer.commit(1, after=Event())
    assert store.stats().free_pages == 8


def test_a_drop_while_waiting_for_the_event_publishes_nothing(space, store):
    class Event:
        def synchronize(self):
            space.drop()

    with space.reserve(space.chain([1, 2]), 0, 1) as writer:
        assert writer.commit(1, after=Event()) == (UNLINKED,)
    assert store.stats().free_pages == 8


def test_what_is_no_event_or_lease_is_refused_and_publishes_nothing(space, store):
    with space.reserve(space.chain([1, 2]), 0, 1) as writer:
        with pytest.raises(ValueError, match=r"after must be an event .* got str"):
            writer.commit(1, after="now")
        with pytest.raises(ValueError, match=r"\[kvstore.copy_tail\] lease must be a Lease; got"):
            writer.copy_tail(None)
        assert writer.num_committed == 0
    assert store.stats().cached_pages == 0
