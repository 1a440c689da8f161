# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from kt_kvcache import Extra, Hit, OutOfPages, StaleHandle, Tier


def test_acquire_finds_the_longest_prefix_of_full_pages(space, fill):
    fill([1, 2, 3, 4, 5, 6]).release()
    for tokens, num_tokens in (
        ([1, 2, 3, 4, 5, 6, 7], 6),
        ([1, 2, 3, 4, 5], 4),
        ([1, 2, 9, 4, 5, 6], 2),
        ([3, 4], 0),
        ([1], 0),
        ([], 0),
    ):
        chain = space.chain(tokens)
        assert space.probe(chain) == Hit(
            num_tokens, num_tokens // 2, {Tier.MEMORY: num_tokens // 2}
        )
        with space.acquire(chain) as lease:
            assert lease.num_tokens == num_tokens


@pytest.mark.parametrize(("max_tokens", "num_tokens"), [(0, 0), (1, 0), (2, 2), (3, 2), (99, 4)])
def test_max_tokens_limits_the_prefix(space, fill, max_tokens, num_tokens):
    fill([1, 2, 3, 4]).release()
    with space.acquire(space.chain([1, 2, 3, 4]), max_tokens) as lease:
        assert lease.num_tokens == num_tokens


def test_probe_pins_nothing_and_counts_nothing(space, fill, store):
    fill([1, 2]).release()
    before = store.stats()
    space.probe(space.chain([1, 2, 3, 4]))
    assert store.stats() == before


def test_the_same_tenant_hits_and_every_other_namespace_misses(store, identity, geometry):
    home = store.space(identity, geometry, tenant="alice")
    chain = home.chain([1, 2])
    with home.reserve(chain, 0, 1) as writer:
        writer.commit(1, after=None)
    assert store.space(identity, geometry, tenant="alice").probe(chain).num_tokens == 2
    for other in (
        store.space(identity, geometry, tenant="bob"),
        store.space(identity, geometry, tenant=""),
        store.space(identity, geometry),
        store.space(replace(identity, weights="other"), geometry, tenant="alice"),
        store.space(replace(identity, adapter="lora"), geometry, tenant="alice"),
        store.space(identity, replace(geometry, layout="hnd"), tenant="alice"),
    ):
        assert other.probe(other.chain([1, 2])).num_tokens == 0


def test_extras_separate_equal_tokens(space):
    cat = space.chain([1, 2, 3, 4], [Extra(2, 1, b"cat")])
    with space.reserve(cat, 0, 2) as writer:
        writer.commit(2, after=None)
    assert space.probe(space.chain([1, 2, 3, 4], [Extra(2, 1, b"cat")])).num_tokens == 4
    assert space.probe(space.chain([1, 2, 3, 4], [Extra(2, 1, b"dog")])).num_tokens == 2
    assert space.probe(space.chain([1, 2, 3, 4])).num_tokens == 2


def test_a_chain_of_another_namespace_is_refused(store, space, identity, geometry):
    chain = store.space(identity, geometry, tenant="bob").chain([1, 2])
    for call in (
        space.probe,
        space.acquire,
        space.drop,
        lambda chain: space.reserve(chain, 0, 1),
    ):
        with pytest.raises(ValueError, match="chain must come from this space; got one of another"):
            call(chain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, c: s.reserve(c, -1, 1), r"\[kvstore.reserve\] first_page .* >= 0; got -1"),
        (lambda s, c: s.reserve(c, 0, 0), r"\[kvstore.reserve\] n must .* >= 1; got 0"),
        (lambda s, c: s.reserve(c, 0, 1.0), r"n must be an integer >= 1; got 1.0"),
        (lambda s, c: s.acquire(c, -1), r"\[kvstore.acquire\] max_tokens .* >= 0; got -1"),
        (lambda s, c: s.acquire("c"), r"\[kvstore.acquire\] chain must be a Chain; got str"),
        (lambda s, c: s.probe(None), r"\[kvstore.probe\] chain must be a Chain; got None"),
        (lambda s, c: s.drop([1]), r"\[kvstore.drop\] chain must be a Chain; got list"),
        (lambda s, c: s.keep(c, float("nan")), r"ttl_s must be seconds >= 0; got nan"),
        (lambda s, c: s.keep(c, 10**400), r"ttl_s must be seconds >= 0; got 1000"),
        (lambda s, c: s.chain([1], [b"cat"]), r"each extra must be an Extra; got bytes"),
        (lambda s, c: s.chain([1], 7), r"extras must be a Sequence; got int"),
        (lambda s, c: c.parent_hash("0"), r"page must be an integer in \[0, 0\]; got '0'"),
        (lambda s, c: s.drop(c), r"\[kvstore.drop\] chain must have a full page; got 1 tokens"),
    ],
)
def test_bad_input_is_named(space, call, message):
    with pytest.raises(ValueError, match=message):
        call(space, space.chain([1]))


def test_reserve_gives_up_cleanly_when_too_much_is_held(space, fill, store):
    with fill([1, 2, 3, 4]):
        fill([5, 6]).release()
        before = store.stats()
        with pytest.raises(OutOfPages, match="got 7 requested, 5 free, 1 evictable of 8"):
            space.reserve(space.chain([]), 0, 7)
        assert store.stats() == before
        space.reserve(space.chain([]), 0, 6).release()


def test_dropping_a_chain_forgets_its_last_page_and_all_below(space, fill):
    fill([1, 2, 3, 4, 5, 6]).release()
    fill([1, 2, 3, 4, 7, 8], first_page=2).release()
    fill([1, 2, 9, 9], first_page=1).release()
    assert space.drop(space.chain([1, 2, 3, 4])) == 3
    assert space.probe(space.chain([1, 2, 3, 4])).num_tokens == 2
    assert space.probe(space.chain([1, 2, 9, 9])).num_tokens == 4


def test_a_lease_outlives_the_drop_of_its_chain(space, fill, store):
    fill([1, 2, 3, 4]).release()
    with space.acquire(space.chain([1, 2, 3, 4])) as lease:
        assert space.drop(space.chain([1, 2])) == 2
        assert len(lease.page_ids) == 2
        with space.reserve(space.chain([]), 0, 6) as writer:
            assert not set(writer.page_ids) & set(lease.page_ids)
    assert store.stats().free_pages == 8


def test_dropping_the_space_ends_it_and_a_new_one_starts_empty(
    store, space, fill, identity, geometry
):
    fill([1, 2, 3, 4]).release()
    bob = store.space(identity, geometry, tenant="bob")
    with bob.reserve(bob.chain([1, 2]), 0, 1) as writer:
        writer.commit(1, after=None)
    chain = space.chain([1, 2])
    assert space.drop() == 2
    for call in (space.probe, space.acquire, lambda chain: space.reserve(chain, 0, 1), space.drop):
        with pytest.raises(StaleHandle, match="the space must be alive; got a dropped one"):
            call(chain)
    assert store.space(identity, geometry).probe(chain).num_tokens == 0
    assert bob.probe(bob.chain([1, 2])).num_tokens == 2
