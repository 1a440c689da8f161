# SPDX-License-Identifier: Apache-2.0
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.chain import Chain, Extra
from kt_kvcache.hashing import chain_hash_python

NS_KEY = bytes(range(32))
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def make(tokens, extras=(), page_tokens=4, ns_key=NS_KEY):
    chain = Chain(ns_key, page_tokens)
    chain.extend(tokens, extras)
    return chain


def hashes(chain):
    return [chain.page_hash(i) for i in range(chain.num_pages)]


def test_golden_vectors_hold_on_every_machine():
    chain = make([1, 2, 3, 2**32 - 1, 5, 6, 7, 8], [Extra(6, 9, b"image")])
    assert [h.hex() for h in hashes(chain)] == [
        "d46e4be47c79c4a92d59fe1a6575b120cb7243fafd625821899c722c25b995fe",
        "3c75b12ae68742bf9878ebc87cae5adb9affc3388d330294a3b0688d3f50c0d3",
    ]


def test_hash_follows_the_documented_bytes():
    extras = [Extra(6, 9, b"image"), Extra(5, 0, b"")]
    chain = make([1, 2, 3, 4, 5, 6, 7, 8], extras)
    first = hashlib.sha256(b"\x01" + NS_KEY + struct.pack("<I4IH", 4, 1, 2, 3, 4, 0)).digest()
    body = struct.pack("<I4IH", 4, 5, 6, 7, 8, 2)
    body += struct.pack("<BII", 0, 1, 0) + struct.pack("<BII", 9, 2, 5) + b"image"
    second = hashlib.sha256(b"\x01" + first + body).digest()
    assert hashes(chain) == [first, second]
    assert chain.page_body(1) == body
    assert (chain.parent_hash(0), chain.parent_hash(1)) == (NS_KEY, first)
    assert list(chain.links(1)) == [(first, chain.page_body(0))]


@given(st.lists(token_lists, max_size=6), st.integers(1, 5))
def test_incremental_equals_one_shot(pieces, page_tokens):
    grown = Chain(NS_KEY, page_tokens)
    for piece in pieces:
        grown.extend(piece)
    whole = make([token for piece in pieces for token in piece], page_tokens=page_tokens)
    assert hashes(grown) == hashes(whole)
    assert grown.num_tokens == whole.num_tokens == sum(map(len, pieces))
    assert grown.num_pages == grown.num_tokens // page_tokens


@given(st.data())
def test_extras_given_piecewise_equal_extras_given_at_once(data):
    tokens = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=20))
    positions = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=5))
    extras = [Extra(position, i, b"%d" % i) for i, position in enumerate(positions)]
    cut = data.draw(st.integers(0, len(tokens)))
    grown = make(tokens[:cut], [e for e in extras if e.position < cut])
    grown.extend(tokens[cut:], [e for e in extras if e.position >= cut])
    assert hashes(grown) == hashes(make(tokens, extras))


@given(token_lists, token_lists)
def test_equal_hashes_mean_equal_prefixes(a, b):
    for i, (one, other) in enumerate(zip(hashes(make(a)), hashes(make(b)), strict=False)):
        end = (i + 1) * 4
        assert (one == other) == (a[:end] == b[:end])


def test_every_input_moves_the_hash():
    base = make([0, 0, 0, 0], [Extra(1, 1, b"x")])
    others = [
        make([0, 0, 0, 1], [Extra(1, 1, b"x")]),
        make([0, 0, 0, 0], [Extra(2, 1, b"x")]),
        make([0, 0, 0, 0], [Extra(1, 2, b"x")]),
        make([0, 0, 0, 0], [Extra(1, 1, b"y")]),
        make([0, 0, 0, 0], [Extra(1, 1, b"")]),
        make([0, 0, 0, 0], [Extra(1, 1, b"x"), Extra(1, 1, b"x")]),
        make([0, 0, 0, 0]),
        make([0, 0, 0, 0], [Extra(1, 1, b"x")], ns_key=bytes(32)),
    ]
    assert base.page_hash(0) not in {other.page_hash(0) for other in others}


def test_arrays_and_lists_agree(monkeypatch):
    tokens = [5, 0, 2**31, 2**32 - 1]
    expected = hashes(make(tokens))
    for dtype in (np.uint32, np.int64, ">u4"):
        assert hashes(make(np.array(tokens, dtype))) == expected
    assert hashes(make(np.repeat(np.array(tokens), 2)[::2])) == expected  # not contiguous
    assert hashes(make(tuple(tokens))) == expected
    assert hashes(make([np.int64(token) for token in tokens])) == expected
    monkeypatch.setattr("kt_kvcache.chain.HAS_CORE", False)
    assert hashes(make(tokens)) == expected


def test_extending_hashes_only_the_new_pages(monkeypatch):
    chain = make(range(40))
    hashed = []

    def chain_hash(parent, tokens, page_tokens):
        hashed.append(len(tokens))
        return chain_hash_python(parent, tokens, page_tokens)

    monkeypatch.setattr("kt_kvcache.chain.chain_hash", chain_hash)
    chain.extend([1, 2, 3])
    assert hashed == []
    chain.extend([4, 5])
    assert hashed == [16]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([-1], "got can't convert negative value|got .*unsigned"),
        ([2**32], "got "),
        ([5, 2**64], "got "),
        ([5, -(2**64)], "got "),
        ([1.5], "got "),
        ("text", "got str"),
        (b"\x01\0\0\0", "got bytes"),
        (np.array([1.0]), r"got float64 \(1,\)"),
        (np.array([True]), r"got bool \(1,\)"),
        (np.zeros((2, 2), int), r"got int64 \(2, 2\)"),
        (np.array([3, -1]), r"got values in \[-1, 3\]"),
        (np.array([2**32]), r"got values in"),
    ],
)
def test_bad_tokens_are_refused_and_change_nothing(tokens, message):
    chain = make([1, 2, 3])
    with pytest.raises(ValueError, match=r"\[kvstore.extend\] tokens must be .*; " + message):
        chain.extend(tokens)
    assert chain.num_tokens == 3


@pytest.mark.parametrize("position", [0, 2, 5])
def test_an_extra_outside_its_tokens_is_refused_and_changes_nothing(position):
    chain = make([1, 2, 3])
    with pytest.raises(ValueError, match=rf"in \[3, 4\]; got position {position}"):
        chain.extend([4, 5], [Extra(position, 0, b"")])
    chain.extend([4])
    assert hashes(chain) == hashes(make([1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((-1, 0, b""), "position must be an integer >= 0; got -1"),
        ((0, 256, b""), r"tag must be an integer in \[0, 255\]; got 256"),
        ((0, 0, "digest"), "data must be bytes; got str"),
    ],
)
def test_a_bad_extra_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Extra(*fields)


def test_more_extras_than_their_counter_holds_are_refused():
    chain = Chain(NS_KEY, 4)
    with pytest.raises(ValueError, match=r"at most 65535 extras may wait .* got 65536"):
        chain.extend([1], [Extra(0, 0, b"")] * 65536)


@pytest.mark.parametrize("page", [-1, 1])
def test_only_full_pages_have_a_hash(page):
    chain = make([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match=rf"page must be an integer in \[0, 0\]; got {page}"):
        chain.page_hash(page)
