# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of the pages of a run, and of a page with extras; chain.py says what these are."""

from collections.abc import Callable
from hashlib import sha256
from struct import pack
from typing import Protocol

from kt_kvcache.native import HAS_CORE

HASH_BYTES = 32
HEADER_BYTES = 4  # u32 n
TOKEN_BYTES = 4
NO_EXTRAS = b"\x00\x00"

_RUN_DOMAIN = b"kt-kvcache/run/2"
_EXTRAS_DOMAIN = b"kt-kvcache/extras/2"
_DOMAIN_BYTES = (
    28  # with n and a hash that is a block of SHA-256: tokens stand in blocks of their own
)

Bytes = bytes | bytearray | memoryview


class RunHasher(Protocol):
    """The running hash of one run of pages."""

    def append(self, tokens: Bytes, hashes: bytearray) -> None:
        """Goes on by whole pages and appends the hash after each to `hashes`; O(len(tokens))."""


class PythonRunHasher:
    """A RunHasher on hashlib; says what the core's twin computes, which releases the GIL."""

    __slots__ = ("_page_bytes", "_sha256")

    def __init__(self, first_block: bytes, page_tokens: int) -> None:
        """Starts before the run's first page; see ``first_block``."""
        self._page_bytes = page_tokens * TOKEN_BYTES
        self._sha256 = sha256(first_block)

    def append(self, tokens: Bytes, hashes: bytearray) -> None:
        """See ``RunHasher.append``."""
        running = self._sha256
        for start in range(0, len(tokens), self._page_bytes):
            running.update(tokens[start : start + self._page_bytes])
            hashes += running.copy().digest()


def first_block(page_tokens: int, root: bytes) -> bytes:
    """Returns the 64 bytes that a run behind the hash `root` begins with."""
    return _block(_RUN_DOMAIN, page_tokens, root)


def hash_with_extras(page_tokens: int, parent: bytes, tokens: bytes, extras: bytes) -> bytes:
    """Returns the hash of a page that has extras, behind the hash `parent`."""
    return sha256(_block(_EXTRAS_DOMAIN, page_tokens, parent) + tokens + extras).digest()


def _block(domain: bytes, page_tokens: int, parent: bytes) -> bytes:
    return domain.ljust(_DOMAIN_BYTES, b"\0") + pack("<I", page_tokens) + parent


def _fastest() -> Callable[[bytes, int], RunHasher]:
    if not HAS_CORE:
        return PythonRunHasher
    from kt_kvcache import _core

    return _core.RunHasher


open_run: Callable[[bytes, int], RunHasher] = _fastest()
