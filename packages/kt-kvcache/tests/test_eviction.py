# SPDX-License-Identifier: Apache-2.0
from random import Random

from kt_kvcache.eviction import LruPolicy
from kt_kvcache.page import CachedPage


def page(last_used: int) -> CachedPage:
    page = CachedPage(b"", None, b"", 0)
    page.last_used = last_used
    return page


def test_the_page_released_longest_ago_goes_first_whenever_it_was_added():
    policy = LruPolicy()
    pages = [page(last_used) for last_used in (5, 1, 9, 3)]
    for candidate in pages:
        policy.add(candidate)
    assert [policy.pop().last_used for _ in pages] == [1, 3, 5, 9]
    assert len(policy) == 0


def test_removed_pages_are_not_chosen_and_may_return():
    policy = LruPolicy()
    first, second = page(1), page(2)
    policy.add(first)
    policy.add(second)
    policy.remove(first)
    assert first not in policy
    assert second in policy
    first.last_used = 3
    policy.add(first)
    assert [policy.pop(), policy.pop()] == [second, first]


def test_order_equals_sorting_under_random_use():
    random = Random(0)
    policy, held = LruPolicy(), set()
    for clock in range(3000):
        if held and random.random() < 0.4:
            victim = random.choice(sorted(held, key=lambda p: p.last_used))
            policy.remove(victim)
            held.remove(victim)
        elif held and random.random() < 0.3:
            victim = policy.pop()
            assert victim is min(held, key=lambda p: p.last_used)
            held.remove(victim)
        else:
            held.add(new := page(clock))
            policy.add(new)
        assert len(policy) == len(held)
