# SPDX-License-Identifier: Apache-2.0
"""Every way to hash a run of pages, against hashlib."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_kvcache.hashing import PythonRunHasher, first_block, hash_with_extras, open_run
from kt_kvcache.native import HAS_CORE

START = bytes(range(100, 164))
WAYS = {"python": PythonRunHasher}
if HAS_CORE:
    from kt_kvcache import _core

    for path in _core.hash_paths():
        WAYS[path] = lambda start, n, path=path: _core.RunHasher(start, n, path)


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request):
    return request.param


def hashed(way, tokens, page_tokens, start=START):
    hashes = bytearray(b"before")
    way(start, page_tokens).append(tokens, hashes)
    assert hashes[:6] == b"before"
    return hashes[6:]


def expected(tokens, page_tokens, start=START):
    page_bytes = 4 * page_tokens
    ends = range(page_bytes, len(tokens) + 1, page_bytes)
    return b"".join(hashlib.sha256(start + tokens[:end]).digest() for end in ends)


# Pages end at every word of a block: also where the length needs a block of its own.
@pytest.mark.parametrize("page_tokens", [*range(1, 37), 48, 64, 100, 1000])
def test_pages_of_every_size(way, page_tokens):
    tokens = np.random.default_rng(page_tokens).bytes(19 * 4 * page_tokens)
    assert hashed(way, tokens, page_tokens) == expected(tokens, page_tokens)


@pytest.mark.parametrize("num_pages", [0, 1, 7, 8, 9, 300])
@pytest.mark.parametrize("page_tokens", [3, 16])
def test_numbers_of_pages(way, num_pages, page_tokens):
    tokens = np.random.default_rng(num_pages).bytes(num_pages * 4 * page_tokens)
    assert hashed(way, tokens, page_tokens) == expected(tokens, page_tokens)


@pytest.mark.parametrize("page_tokens", [1, 5, 14, 15, 16, 17, 31, 32, 64])
def test_two_pieces_at_every_cut(way, page_tokens):
    num_pages, page_bytes = 18, 4 * page_tokens
    tokens = np.random.default_rng(page_tokens).bytes(num_pages * page_bytes)
    whole = expected(tokens, page_tokens)
    for cut in range(num_pages + 1):
        hasher, hashes = way(START, page_tokens), bytearray()
        for piece in (tokens[: cut * page_bytes], tokens[cut * page_bytes :]):
            hasher.append(piece, hashes)
        assert hashes == whole


@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(0, 12), max_size=8), st.randoms())
def test_any_pieces(name, page_tokens, pieces, random):
    hasher, hashes, tokens = WAYS[name](START, page_tokens), bytearray(), b""
    for num_pages in pieces:
        piece = random.randbytes(num_pages * 4 * page_tokens)
        hasher.append(piece, hashes)
        tokens += piece
    assert hashes == expected(tokens, page_tokens)


def test_words_with_all_bits_and_none(way):
    tokens = bytes(256) + b"\xff" * 256
    for start in (bytes(64), b"\xff" * 64):
        for page_tokens in (2, 16, 64):
            got = hashed(way, tokens, page_tokens, start)
            assert got == expected(tokens, page_tokens, start)


def test_any_object_with_bytes_at_any_address(way):
    tokens = bytes(range(1, 1 + 130)) * 2
    for kind in (bytes, bytearray, memoryview):
        for page_tokens in (32, 16, 4):
            got = hashed(way, kind(tokens)[3 : 3 + 256], page_tokens)
            assert got == expected(tokens[3:259], page_tokens)


def test_the_core_is_chosen_where_it_is():
    assert (open_run is PythonRunHasher) == (not HAS_CORE)


def test_a_run_and_a_page_with_extras_begin_with_blocks_of_their_own():
    parent = bytes(range(32))
    run = b"kt-kvcache/run/2" + bytes(12) + struct.pack("<I", 7) + parent
    assert first_block(7, parent) == run
    assert len(run) == 64
    extras = b"kt-kvcache/extras/2" + bytes(9) + struct.pack("<I", 7) + parent
    assert len(extras) == 64
    named = hashlib.sha256(extras + b"tokensextras").digest()
    assert hash_with_extras(7, parent, b"tokens", b"extras") == named


@pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytes(63), 4), "first_block must have 64 bytes; got 63"),
        ((bytes(64), 0), r"page_tokens must be in \[1, 2\*\*32\); got 0"),
        ((bytes(64), 2**32), "page_tokens must be in .* got 4294967296"),
        ((bytes(64), 4, "sse2"), r"path must be one of hash_paths\(\); got sse2"),
    ],
)
def test_the_core_refuses_a_run_that_is_none(arguments, message):
    with pytest.raises(ValueError, match=rf"\[kvstore.run_hasher\] {message}"):
        _core.RunHasher(*arguments)


@pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")
def test_the_core_refuses_what_it_cannot_append():
    hasher, hashes = _core.RunHasher(START, 4), bytearray()
    with pytest.raises(ValueError, match=r"tokens must fill whole pages; got 17 bytes"):
        hasher.append(bytes(17), hashes)
    with pytest.raises(TypeError):
        hasher.append("x" * 16, hashes)
    with pytest.raises(BufferError):
        hasher.append(memoryview(bytes(64))[::2], hashes)
    with memoryview(hashes), pytest.raises(BufferError):  # it cannot grow
        hasher.append(bytes(16), hashes)
    hashes += bytes(16)
    with pytest.raises(BufferError):  # nor this
        hasher.append(hashes, hashes)
    del hashes[:]
    hasher.append(bytes(32), hashes)  # none of these calls has left a trace
    assert hashes == expected(bytes(32), 4)
