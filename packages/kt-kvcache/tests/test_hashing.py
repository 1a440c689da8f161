# SPDX-License-Identifier: Apache-2.0
"""Every way to hash a chain, against hashlib."""

import hashlib
import struct

import numpy as np
import pytest

from kt_kvcache.hashing import chain_hash, chain_hash_python
from kt_kvcache.native import HAS_CORE

PARENT = bytes(range(100, 132))
if HAS_CORE:
    from kt_kvcache import _core

    WAYS = {"python": chain_hash_python} | {
        path: lambda parent, tokens, n, path=path: _core.chain_hash(parent, tokens, n, path)
        for path in _core.hash_paths()
    }
else:
    WAYS = {"python": chain_hash_python}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request):
    return request.param


def expected(parent, tokens, page_tokens):
    hashes = b""
    for start in range(0, len(tokens), 4 * page_tokens):
        body = struct.pack("<I", page_tokens) + tokens[start : start + 4 * page_tokens] + bytes(2)
        parent = hashlib.sha256(b"\x01" + parent + body).digest()
        hashes += parent
    return hashes


# Messages end in every byte of a block: also with padding or its length in a block of its own.
@pytest.mark.parametrize("page_tokens", [*range(1, 37), 64, 100, 1000])
def test_pages_of_every_size(way, page_tokens):
    tokens = np.random.default_rng(page_tokens).bytes(19 * 4 * page_tokens)
    assert way(PARENT, tokens, page_tokens) == expected(PARENT, tokens, page_tokens)


@pytest.mark.parametrize("num_pages", [0, 1, 7, 8, 9, 300])
def test_numbers_of_pages(way, num_pages):
    tokens = np.random.default_rng(num_pages).bytes(num_pages * 64)
    assert way(PARENT, tokens, 16) == expected(PARENT, tokens, 16)


def test_words_with_all_bits_and_none(way):
    tokens = bytes(256) + b"\xff" * 256
    for parent in (bytes(32), b"\xff" * 32):
        assert way(parent, tokens, 64) == expected(parent, tokens, 64)


def test_any_object_with_bytes_at_any_address(way):
    tokens = bytes(range(1, 1 + 130)) * 2
    for kind in (bytes, bytearray, memoryview):
        got = way(PARENT, kind(tokens)[3 : 3 + 256], 32)
        assert got == expected(PARENT, tokens[3:259], 32)


def test_the_core_is_chosen_where_it_is():
    assert (chain_hash is chain_hash_python) == (not HAS_CORE)


@pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytes(31), b"", 4), "parent must have 32 bytes; got 31"),
        ((bytes(32), bytes(17), 4), "tokens must fill whole pages; got 17 bytes"),
        ((bytes(32), b"", 0), r"page_tokens must be in \[1, 2\*\*32\); got 0"),
        ((bytes(32), b"", 2**32), "page_tokens must be in .* got 4294967296"),
        ((bytes(32), b"", 4, "sse2"), r"path must be one of hash_paths\(\); got sse2"),
    ],
)
def test_the_core_refuses_what_it_cannot_hash(arguments, message):
    with pytest.raises(ValueError, match=rf"\[kvstore.chain_hash\] {message}"):
        _core.chain_hash(*arguments)


@pytest.mark.skipif(not HAS_CORE, reason="no core in this installation")
def test_the_core_wants_bytes_in_one_piece():
    with pytest.raises(TypeError):
        _core.chain_hash("x" * 32, b"", 4)
    with pytest.raises(BufferError):
        _core.chain_hash(bytes(32), memoryview(bytes(64))[::2], 4)
