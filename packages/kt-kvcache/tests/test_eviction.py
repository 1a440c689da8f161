# SPDX-License-Identifier: Apache-2.0
from random import Random

from kt_kvcache.eviction import BranchPolicy, LruPolicy
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


def branching(last_used: int, num_branches: int, page_hash: bytes = b"") -> CachedPage:
    page = CachedPage(page_hash, None, b"", 0)
    page.last_used, page.num_branches = last_used, num_branches
    return page


def warm(policy: BranchPolicy, age: int) -> None:
    """Makes `age` the age at which pages are evicted."""
    policy.add(page(age))
    policy.add(page(0))
    policy.pop()
    policy.remove(next(iter(policy._pages._live)))


def test_pages_without_branches_are_evicted_as_by_lru():
    policy = BranchPolicy()
    warm(policy, 100)
    pages = [branching(100 + used, used % 2) for used in (5, 1, 9, 3)]
    for candidate in pages:
        policy.add(candidate)
    assert [policy.pop().last_used for _ in pages] == [101, 103, 105, 109]


def test_each_doubling_of_branches_counts_half_the_usual_age():
    policy = BranchPolicy()
    warm(policy, 100)
    for last_used, num_branches in ((100, 4), (100, 1), (149, 1), (151, 1), (100, 2), (201, 0)):
        policy.add(branching(last_used, num_branches))
    order = [(page.last_used, page.num_branches) for page in (policy.pop() for _ in range(4))]
    assert order[:2] == [(100, 1), (149, 1)]
    assert len(policy) == 2


def test_branches_are_remembered_over_an_eviction():
    policy = BranchPolicy()
    policy.add(branching(0, 5, b"document"))
    policy.add(branching(1, 1, b"question"))
    policy.pop()
    policy.pop()
    document, question = branching(2, 0, b"document"), branching(2, 0, b"question")
    policy.admit(document)
    policy.admit(question)
    assert (document.num_branches, question.num_branches) == (5, 0)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("kt_kvcache.eviction._MAX_REMEMBERED", 2)
    policy = BranchPolicy()
    for name in (b"a", b"b", b"c"):
        policy.add(branching(0, 2, name))
        policy.pop()
    again = [branching(1, 0, name) for name in (b"a", b"b", b"c")]
    for one in again:
        policy.admit(one)
    assert [one.num_branches for one in again] == [0, 2, 2]
