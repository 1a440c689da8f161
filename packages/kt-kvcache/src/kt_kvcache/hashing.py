# SPDX-License-Identifier: Apache-2.0
"""The SHA-256 of a page, and of many pages in a row; chain.py says what a page's bytes are."""

from collections.abc import Callable
from hashlib import sha256
from struct import pack

from kt_kvcache.native import HAS_CORE

HASH_BYTES = 32
HEADER_BYTES = 4  # u32 n
TOKEN_BYTES = 4
NO_EXTRAS = b"\x00\x00"

_PAGE_DOMAIN = b"\x01"

ChainHash = Callable[[bytes, bytes | bytearray | memoryview, int], bytes]


def page_hash(parent: bytes, body: bytes) -> bytes:
    """Returns the hash of one page behind `parent`."""
    return sha256(_PAGE_DOMAIN + parent + body).digest()


def chain_hash_python(
    parent: bytes, tokens: bytes | bytearray | memoryview, page_tokens: int
) -> bytes:
    """Hashes pages without extras, each behind the one before; O(len(tokens)).

    The core's twin of the same signature releases the GIL.

    Args:
        parent: hash before the first page.
        tokens: ids as u32 little-endian, whole pages.
        page_tokens: tokens per page.

    Returns:
        The pages' hashes, 32 bytes each, one after the other.
    """
    hashes = []
    encoded, header, page_bytes = bytes(tokens), pack("<I", page_tokens), page_tokens * TOKEN_BYTES
    for start in range(0, len(encoded), page_bytes):
        body = header + encoded[start : start + page_bytes] + NO_EXTRAS
        parent = sha256(_PAGE_DOMAIN + parent + body).digest()
        hashes.append(parent)
    return b"".join(hashes)


def _fastest() -> ChainHash:
    if not HAS_CORE:
        return chain_hash_python
    from kt_kvcache import _core

    return _core.chain_hash


chain_hash: ChainHash = _fastest()
