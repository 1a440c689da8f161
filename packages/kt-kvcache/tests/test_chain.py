# SPDX-License-Identifier: Apache-2.0
import hashlib
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.chain import Chain, Extra

NS_KEY = bytes(range(32))
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def make(tokens, extras=(), page_tokens=4, ns_key=NS_KEY):
    chain = Chain(ns_key, page_tokens)
    chain.extend(tokens, extras)
    return chain


def hashes(chain):
    return [chain.page_hash(i) for i in range(chain.num_pages)]


def block(domain, h, page_tokens=4):
    return domain.ljust(28, b"\0") + struct.pack("<I", page_tokens) + h


def documented(tokens, extras, page_tokens, ns_key=NS_KEY):
    """The hashes of a chain as chain.py defines them, with hashlib alone."""
    hashes, root, since = [], ns_key, 0
    for i in range(len(tokens) // page_tokens):
        start, end = i * page_tokens, (i + 1) * page_tokens
        mine = sorted((e for e in extras if start <= e.position < end), key=lambda e: e.position)
        if mine:
            message = block(b"kt-kvcache/extras/2", hashes[-1] if hashes else ns_key, page_tokens)
            message += struct.pack(f"<{page_tokens}I", *tokens[start:end])
            message += struct.pack("<H", len(mine))
            for e in mine:
                message += struct.pack("<BII", e.tag, e.position - start, len(e.data)) + e.data
        else:
            message = block(b"kt-kvcache/run/2", root, page_tokens)
            message += struct.pack(f"<{end - since}I", *tokens[since:end])
        hashes.append(hashlib.sha256(message).digest())
        if mine:
            root, since = hashes[-1], end
    return hashes


def test_golden_vectors_hold_on_every_machine():
    chain = make([1, 2, 3, 2**32 - 1, 5, 6, 7, 8, 9, 10, 11, 12], [Extra(6, 9, b"image")])
    assert [h.hex() for h in hashes(chain)] == [
        "8e83aa46e6162e32d05cf0f909fb70699eb12a6138561264635ffc86b914106a",
        "e3cd93878ae26b48cfc8742f8fd06e14d3ca85f8364005348531aa17969d5fdb",
        "7e61736abd79de02cb9d215e5173648ff8a5457ed20c1ca7e53dc3713018da5e",
    ]


def test_hash_follows_the_documented_bytes():
    extras = [Extra(6, 9, b"image"), Extra(5, 0, b"")]
    chain = make(range(1, 17), extras)
    run = block(b"kt-kvcache/run/2", NS_KEY)
    first = hashlib.sha256(run + struct.pack("<4I", 1, 2, 3, 4)).digest()
    tokens = struct.pack("<4I", 5, 6, 7, 8)
    encoded = struct.pack("<H", 2)
    encoded += struct.pack("<BII", 0, 1, 0) + struct.pack("<BII", 9, 2, 5) + b"image"
    second = hashlib.sha256(block(b"kt-kvcache/extras/2", first) + tokens + encoded).digest()
    run = block(b"kt-kvcache/run/2", second)
    third = hashlib.sha256(run + struct.pack("<4I", 9, 10, 11, 12)).digest()
    fourth = hashlib.sha256(run + struct.pack("<8I", *range(9, 17))).digest()
    assert hashes(chain) == [first, second, third, fourth]
    assert chain.page_body(1) == struct.pack("<I", 4) + tokens + encoded
    assert (chain.parent_hash(0), chain.parent_hash(1)) == (NS_KEY, first)
    assert list(chain.links(1)) == [(first, chain.page_body(0))]


@given(st.data(), st.integers(1, 20))
def test_extras_anywhere_in_any_pieces(data, page_tokens):
    num_tokens = data.draw(st.integers(0, 6 * page_tokens))
    tokens = data.draw(st.randoms()).choices(range(2**32), k=num_tokens)
    positions = st.integers(0, max(0, num_tokens - 1))
    where = data.draw(st.lists(positions, max_size=4)) if tokens else []
    extras = [Extra(position, i, b"%d" % i) for i, position in enumerate(where)]
    cuts = sorted(data.draw(st.lists(st.integers(0, num_tokens), max_size=4)))
    chain = Chain(NS_KEY, page_tokens)
    for start, end in pairwise([0, *cuts, num_tokens]):
        chain.extend(tokens[start:end], [e for e in extras if start <= e.position < end])
    assert hashes(chain) == documented(tokens, extras, page_tokens)


def test_no_tokens_stand_for_extras_or_for_the_block_before_a_run():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    with_extras = make(tokens, [Extra(1, 9, b"image")])
    # What the second page's run began with, and the first page's extras, as token ids.
    encoded = struct.pack("<HBII", 1, 9, 1, 5) + b"image"
    for imitation in (
        block(b"kt-kvcache/run/2", with_extras.page_hash(0)),
        block(b"kt-kvcache/extras/2", NS_KEY) + struct.pack("<4I", 1, 2, 3, 4) + encoded,
        struct.pack("<4I", 1, 2, 3, 4) + encoded,
    ):
        ids = np.frombuffer(imitation + bytes(-len(imitation) % 16), "<u4")
        assert not set(hashes(make(ids))) & set(hashes(with_extras))
        both = make(np.concatenate([ids, np.array(tokens, "<u4")]))
        assert not set(hashes(both)) & set(hashes(with_extras))


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

    class Run:
        def append(self, tokens, page_hashes):
            hashed.append(len(tokens))
            page_hashes += bytes(32)

    monkeypatch.setattr(chain, "_run", Run())
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
