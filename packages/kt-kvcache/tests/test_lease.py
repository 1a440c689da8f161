# SPDX-License-Identifier: Apache-2.0
import pytest


def test_a_lease_reads_what_the_writer_wrote(space):
    chain = space.chain([1, 2, 3, 4])
    with space.reserve(chain, 0, 2) as writer:
        view = writer.view()
        for layer in range(2):
            for i in range(2):
                view.page(layer, i)[:] = 10 * layer + i
        writer.commit(2, after=None)
    with space.acquire(chain) as lease:
        assert (lease.num_tokens, lease.num_pages) == (4, 2)
        assert lease.page_ids == view.page_ids
        assert [[int(lease.view().page(k, i)[0]) for i in (0, 1)] for k in (0, 1)] == [
            [0, 1],
            [10, 11],
        ]
        with pytest.raises(ValueError, match="read-only"):
            lease.view().page(0, 0)[:] = 0


def test_a_leased_prefix_survives_any_pressure(space, fill, store):
    fill([1, 2, 3, 4]).release()
    fill([5, 6]).release()
    with space.acquire(space.chain([1, 2, 3, 4])) as lease:
        with space.reserve(space.chain([]), 0, 6):
            assert store.stats().counters.evicted_pages == 1
            assert space.probe(space.chain([5, 6])).num_pages == 0
        assert space.probe(space.chain([1, 2, 3, 4])).num_pages == lease.num_pages == 2


def test_two_leases_on_one_page_need_two_releases(space, fill, store):
    fill([1, 2]).release()
    first, second = space.acquire(space.chain([1, 2])), space.acquire(space.chain([1, 2]))
    assert first.page_ids == second.page_ids
    first.release()
    first.release()
    assert store.stats().pinned_pages == 1
    second.release()
    assert store.stats().cached_pages == 1


def test_a_miss_is_an_empty_lease(space, store):
    with space.acquire(space.chain([1, 2])) as lease:
        assert (lease.num_tokens, lease.page_ids) == (0, ())
        assert store.stats().open_leases == 1
    assert store.stats().open_leases == 0
