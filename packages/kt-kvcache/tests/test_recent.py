# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache import recent
from kt_kvcache.recent import Durations, Evicted


def test_quantiles_are_of_the_last_ones():
    durations = Durations()
    assert durations.quantile(0.99) == 0
    for i in range(3000):
        durations.add(float(i))
    assert durations.quantile(0.5) == 3000 - 1024 + 511
    assert durations.quantile(0.99) == 3000 - 1024 + 1013
    assert durations.quantile(1.0) == 2999


@pytest.mark.parametrize(("q", "value"), [(0.0, 1.0), (0.5, 2.0), (0.51, 3.0), (0.99, 4.0)])
def test_a_quantile_is_one_of_the_values(q, value):
    durations = Durations()
    for seconds in (4.0, 1.0, 3.0, 2.0):
        durations.add(seconds)
    assert durations.quantile(q) == value


def test_pages_that_return_say_how_long_they_were_away():
    evicted = Evicted()
    assert not evicted.returned(b"a", 0)
    for page_hash, now in ((b"a", 1), (b"b", 2), (b"c", 3)):
        evicted.add(page_hash, now)
    assert [evicted.returned(page, 10) for page in (b"a", b"b", b"c", b"a")] == [True] * 3 + [False]
    assert evicted.gap_s == 8


def test_only_so_many_evicted_pages_are_remembered(monkeypatch):
    monkeypatch.setattr(recent, "_NUM_EVICTED", 2)
    evicted = Evicted()
    for page_hash in (b"a", b"b", b"c"):
        evicted.add(page_hash, 0)
    assert [evicted.returned(page, 1) for page in (b"a", b"b", b"c")] == [False, True, True]
