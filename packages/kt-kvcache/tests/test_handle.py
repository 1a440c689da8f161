# SPDX-License-Identifier: Apache-2.0
import gc
import warnings

import pytest

from kt_kvcache import KVStore, StaleHandle, StoreConfig

USES = [lambda handle: handle.page_ids, lambda handle: handle.view()]


@pytest.fixture(params=["lease", "writer"])
def handle(request, space, fill):
    fill([1, 2, 3, 4]).release()
    chain = space.chain([1, 2, 3, 4])
    handle = space.acquire(chain) if request.param == "lease" else space.reserve(chain, 2, 2)
    yield handle
    handle.release()


@pytest.mark.parametrize("use", USES)
def test_a_released_handle_gives_no_pages(handle, use):
    assert handle.num_pages == 2
    handle.release()
    handle.release()
    with pytest.raises(StaleHandle, match=r"\[kvstore\.\w+\] the \w+ must be open; got a released"):
        use(handle)


@pytest.mark.parametrize("use", USES)
def test_a_handle_of_a_dropped_space_gives_no_pages_but_can_be_released(handle, use, space, store):
    space.drop()
    with pytest.raises(StaleHandle, match="the space must be alive; got a dropped one"):
        use(handle)
    assert store.stats().free_pages == 6
    handle.release()
    assert store.stats().free_pages == 8


@pytest.mark.parametrize("use", USES)
def test_a_handle_of_a_closed_store_gives_no_pages_but_can_be_released(use, identity, geometry):
    store = KVStore.open(config=StoreConfig(8, 2))
    space = store.space(identity, geometry)
    handle = space.reserve(space.chain([]), 0, 1)
    store.close()
    with pytest.raises(StaleHandle, match="the store must be open; got a closed one"):
        use(handle)
    handle.release()


def test_leaving_the_block_releases_also_on_an_error(space, store):
    def fail():
        with space.reserve(space.chain([]), 0, 3):
            assert store.stats().reserved_pages == 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.stats().free_pages == 8


@pytest.mark.parametrize("kind", ["lease", "writer"])
def test_a_leak_names_its_creator_and_gives_the_pages_back(kind, space, store, fill):
    fill([1, 2, 3, 4]).release()

    def leak():
        chain = space.chain([1, 2, 3, 4])
        space.acquire(chain) if kind == "lease" else space.reserve(chain, 0, 2)
        gc.collect()

    message = rf"a {kind} must be released; got 2 pages leaked by .*test_handle\.py:\d+ in leak"
    with pytest.warns(ResourceWarning, match=message):
        leak()
    assert store.stats().counters.leaked_handles == 1
    assert store.stats().free_pages + store.stats().cached_pages == 8
    assert store.stats().open_leases + store.stats().open_writers == 0


def test_a_released_handle_is_no_leak(handle):
    handle.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.__del__()


def test_a_view_needs_an_arena(identity, geometry):
    with KVStore.open(config=StoreConfig(8, 2)) as store:
        space = store.space(identity, geometry)
        with space.reserve(space.chain([]), 0, 1) as writer:
            assert writer.page_ids == (0,)
            with pytest.raises(ValueError, match="must have an arena; got arena=None"):
                writer.view()
