# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache.eviction import BranchPolicy, LruPolicy
from kt_kvcache.simulation.candidates import FrequencyPolicy, ProbationPolicy
from kt_kvcache.simulation.replay import OptimalPolicy, hashed, replay, working_set
from kt_kvcache.simulation.traces import TRACES, Request


def trace_of(*prompts):
    return hashed([Request(tuple(prompt), (1000 + i,)) for i, prompt in enumerate(prompts)])


def optimal(trace, num_pages):
    policy = OptimalPolicy(trace)
    return replay(trace, num_pages, policy, policy.begin)


def test_pages_of_prompts_are_counted_when_found():
    trace = trace_of([1, 2], [1, 2, 3], [1, 9])
    assert working_set(trace) == 7
    assert replay(trace, 7, LruPolicy()) == 0 + 2 + 1


def test_the_optimum_keeps_what_is_asked_for_again():
    # Four pages: LRU loses [1, 2] to the two others, which never come back.
    trace = trace_of([1, 2], [3], [4], [1, 2])
    assert replay(trace, 4, LruPolicy()) == 0
    assert optimal(trace, 4) == 2


@pytest.mark.parametrize("name", TRACES)
def test_the_default_finds_as_much_as_lru_and_no_more_than_the_optimum(name):
    trace = hashed(TRACES[name](1, 300))
    largest = max(request.chain.num_pages for request in trace)
    lru = default = 0
    for percent in (10, 25, 50):
        num_pages = max(largest, working_set(trace) * percent // 100)
        lru += replay(trace, num_pages, LruPolicy())
        found = replay(trace, num_pages, BranchPolicy())
        assert percent > 10 or found <= optimal(trace, num_pages)
        default += found
    # Any policy but LRU loses a page to it now and then, in so short a trace.
    assert default >= 0.999 * lru


def test_the_default_finds_more_where_documents_are_shared():
    trace = hashed(TRACES["retrieval"](1, 300))
    num_pages = working_set(trace) // 10
    assert replay(trace, num_pages, BranchPolicy()) > 1.02 * replay(trace, num_pages, LruPolicy())


def test_frequency_keeps_the_page_used_more_often():
    trace = trace_of([1], [1], [1], [2], [3], [1])
    policy = FrequencyPolicy(trace)
    assert replay(trace, 3, LruPolicy()) == 2
    assert replay(trace, 3, policy, policy.begin) == 3


def test_probation_evicts_pages_used_once_first():
    trace = trace_of([1], [1], [2], [3], [4], [1])
    assert replay(trace, 5, LruPolicy()) == 1
    assert replay(trace, 5, ProbationPolicy(5)) == 2
