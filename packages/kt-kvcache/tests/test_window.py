# SPDX-License-Identifier: Apache-2.0
"""Where prefixes with windows may end, and what of their pages is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.disk.read_rate import ReadRate
from kt_kvcache.identity import Geometry, Group, WindowGroup
from kt_kvcache.index import usable
from kt_kvcache.page import CachedPage
from kt_kvcache.window import Window, window_of


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 5))
def test_the_longest_prefix_whose_last_pages_are_whole(whole, window_pages):
    pages = [CachedPage(bytes(32), None, b"", -1)]
    for i, is_whole in enumerate(whole):
        pages.append(CachedPage(bytes([i] * 32), pages[-1], b"", i))
        pages[-1].whole = is_whole
    best = max(
        n
        for n in range(len(whole) + 1)
        if all(whole[i] for i in range(max(0, n - window_pages), n))
    )
    assert usable(pages[-1], len(whole), window_pages) == (pages[best], best)


FULL, OTHER = Group("full", 12, 1 << 16), WindowGroup("window", 12, 1 << 16, 128)


@pytest.mark.parametrize(
    ("window", "num_pages"), [(1, 2), (63, 2), (64, 2), (65, 3), (128, 3), (129, 4)]
)
def test_the_pages_of_a_window(window, num_pages):
    """However many tokens of the last page are used, the window before them is in whole pages."""
    geometry = Geometry(64, (FULL, WindowGroup("window", 12, 1 << 16, window)))
    assert window_of(geometry, 1 << 16) == Window(num_pages, 12, 12 << 16)
    for used in range(1, 65):  # of the last page; the others before it are full
        assert (num_pages - 1) * 64 + used >= window
    assert (num_pages - 1) * 64 >= window  # none: a tail was given back


@pytest.mark.parametrize(
    ("groups", "extent_bytes"),
    [((FULL,), 1 << 16), ((OTHER,), 1 << 16), ((FULL, OTHER), 5 << 16)],
    ids=["no window", "nothing else", "a bound inside an extent"],
)
def test_where_all_is_read(groups, extent_bytes):
    assert window_of(Geometry(64, groups), extent_bytes) is None


def test_bytes_of_a_load():
    window = Window(3, 12, 100)
    assert [window.num_bytes(n, 1000) for n in (0, 1, 3, 4, 10)] == [0, 1000, 3000, 3100, 3700]


def test_the_last_loads_decide_what_the_next_takes():
    rate = ReadRate()
    assert rate.bytes_per_s == 1e9
    rate.add(3_000, 1.0)
    assert rate.bytes_per_s == 3_000
    for _ in range(50):
        rate.add(10_000, 1.0)
    assert rate.bytes_per_s == pytest.approx(10_000, rel=1e-3)
