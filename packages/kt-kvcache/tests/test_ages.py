# SPDX-License-Identifier: Apache-2.0
"""Pages older than max_age_s are not found, and their slots are free."""

import pytest

from kt_kvcache import Geometry, Group, Identity, KVStore, StoreConfig
from kt_kvcache.ages import Ages
from kt_kvcache.page import CachedPage

S = 10**9
IDENTITY = Identity(weights="w", kv_format="uint8")
GEOMETRY = Geometry(4, (Group("kv", 2, 8),))


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, in a list."""
    time = [1000]
    for module in ("ages", "ram_tier"):
        monkeypatch.setattr(f"kt_kvcache.{module}.now_ns", lambda: time[0] * S)
    return time


def test_the_oldest_are_forgotten_first_and_those_that_left_are_passed_over(now):
    ages, forgotten = Ages(10), []
    pages = [CachedPage(b"", None, b"", i) for i in range(4)]
    for page, born in zip(pages, (993, 991, 992, 990), strict=True):
        page.born = born * S
        ages.add(page)
    pages[1].attached = False

    def forget(page):
        forgotten.append(page)
        return 5

    assert ages.expire(forget) == 5  # what is exactly as old as allowed goes, too
    now[0] = 1002
    assert ages.expire(forget) == 5
    assert forgotten == [pages[3], pages[2]]


def test_what_left_is_not_kept_alive_for_long(now):
    ages = Ages(10)
    for i in range(5000):
        page = CachedPage(b"", None, b"", i)
        page.born, page.attached = now[0] * S, False
        ages.add(page)
    assert len(ages._pages) <= 1025


def fill(space, tokens):
    chain = space.chain(tokens)
    with space.acquire(chain) as lease:
        n = chain.num_pages - lease.num_pages
        with space.reserve(chain, lease.num_pages, n) as writer:
            writer.commit(n, after=None)
    return chain


def test_in_memory(now):
    store = KVStore.open(config=StoreConfig(8, GEOMETRY.page_tokens, max_age_s=10))
    space = store.space(IDENTITY, GEOMETRY)
    tokens = list(range(4 * GEOMETRY.page_tokens))
    fill(space, tokens[: 2 * GEOMETRY.page_tokens])
    now[0] += 5
    chain = fill(space, tokens)
    now[0] += 4
    assert space.probe(chain).num_pages == 4
    held = space.acquire(chain)
    now[0] += 1
    assert space.probe(chain).num_pages == 0  # what follows an old page cannot be reached
    assert held.num_pages == 4  # and stays readable for who has it
    held.release()
    stats = store.stats()
    assert (stats.free_pages, stats.counters.expired_pages) == (8, 4)
    store.check_integrity()


def test_never_without_the_setting(now):
    store = KVStore.open(config=StoreConfig(8, GEOMETRY.page_tokens))
    space = store.space(IDENTITY, GEOMETRY)
    chain = fill(space, list(range(GEOMETRY.page_tokens)))
    now[0] += 10**9
    assert space.probe(chain).num_pages == 1


@pytest.mark.parametrize("age", [-1.0, float("inf"), float("nan")])
def test_the_setting_is_checked(age):
    with pytest.raises(ValueError, match="max_age_s must be seconds >= 0"):
        StoreConfig(8, max_age_s=age)
