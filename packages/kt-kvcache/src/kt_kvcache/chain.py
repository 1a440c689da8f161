# SPDX-License-Identifier: Apache-2.0
"""The hash chain that names the full pages of a token sequence; it never looks into the store.

    h_0 = ns_key
    h_i = SHA256(block("kt-kvcache/extras/2", h_{i-1}) || tokens_i || extras_i)  with extras
    h_i = SHA256(block("kt-kvcache/run/2", h_r) || tokens_{r+1} || ... || tokens_i)  without,
          where r is the last page before i that has extras, or 0
    block(domain, h) = domain, padded with zeros to 28 bytes || u32 n || h  (64 bytes)
    tokens_i = n token ids as u32
    extras_i = u16 k || k x (u8 tag, u32 offset, u32 length, bytes)

All integers are little-endian; n is the page size; `offset` is the extra's token position inside
its page. There is no seed: the same input gives the same hash in every process. Pages without
extras in a row are a run: one running hash over their bare tokens, read after each page (ADR 0015).

A page's body, which is kept and compared wherever a page is, is u32 n || tokens_i || extras_i.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_kvcache.errors import require_int, require_type
from kt_kvcache.hashing import (
    HASH_BYTES,
    NO_EXTRAS,
    TOKEN_BYTES,
    first_block,
    hash_with_extras,
    open_run,
)
from kt_kvcache.native import HAS_CORE

if HAS_CORE:
    from kt_kvcache import _core

TokenIds = Sequence[int] | NDArray[np.integer[Any]]

_MAX_EXTRAS = 0xFFFF  # k is a u16


@dataclass(frozen=True, slots=True)
class Extra:
    """Input besides token ids that the KV of a page depends on, such as an image's digest.

    Attributes:
        position: token position it stands at, counted from the start of the chain.
        tag: kind of input, 0 to 255, chosen by the caller.
        data: its digest or bytes.
    """

    position: int
    tag: int
    data: bytes

    def __post_init__(self) -> None:
        require_int("extra", "position", self.position, 0)
        require_int("extra", "tag", self.tag, 0, 255)
        if not isinstance(self.data, bytes):
            raise ValueError(f"[kvstore.extra] data must be bytes; got {type(self.data).__name__}")


class Chain:
    """Page hashes of one token sequence in one namespace; it only ever grows.

    Made by ``Space.chain``. A chain belongs to one thread at a time.
    """

    __slots__ = ("_extra_bytes", "_extras", "_hashes", "_run", "_tokens", "ns_key", "page_tokens")

    def __init__(self, ns_key: bytes, page_tokens: int) -> None:
        """Starts an empty chain at h_0 = `ns_key` with `page_tokens` tokens per page."""
        self.ns_key = ns_key
        self.page_tokens = page_tokens
        # One after the other, so that a long chain makes no objects per page.
        self._hashes = bytearray()
        self._tokens = bytearray()  # encoded, with those after the last full page
        self._extra_bytes: dict[int, bytes] = {}  # encoded, of full pages that have extras
        self._extras: list[Extra] = []  # by position, not hashed yet
        self._run = open_run(first_block(page_tokens, ns_key), page_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens in the chain, including those after the last full page."""
        return len(self._tokens) // TOKEN_BYTES

    @property
    def num_pages(self) -> int:
        """Full pages in the chain."""
        return len(self._hashes) // HASH_BYTES

    def extend(self, tokens: TokenIds, extras: Sequence[Extra] = ()) -> None:
        """Appends tokens; hashes only the pages that became full. O(len(tokens)).

        Args:
            tokens: ids in [0, 2**32), a sequence of int or a 1-D integer array.
            extras: other input at positions among these tokens.

        Raises:
            ValueError: bad ids, or an extra outside these tokens; the chain is unchanged.
        """
        require_type("extend", "extras", extras, Sequence)
        encoded = _encode_tokens(tokens)
        if extras:
            self._extras += self._checked_extras(extras, len(encoded) // TOKEN_BYTES)
        if isinstance(encoded, bytearray) and not self._tokens:
            self._tokens = encoded  # nobody else's: not copied
        else:
            self._tokens += encoded
        first, end = self.num_pages, self.num_tokens // self.page_tokens
        while first < end:
            last = end
            if self._extras:
                last = min(end, self._extras[0].position // self.page_tokens)
            if first < last:
                self._hash_pages(first, last)
            else:
                last = first + 1
                self._hash_page_with_extras(first)
            first = last

    def page_hash(self, page: int) -> bytes:
        """Returns the 32-byte hash h of full page `page`, counted from 0."""
        require_int("page_hash", "page", page, 0, self.num_pages - 1)
        return bytes(self._hashes[page * HASH_BYTES : (page + 1) * HASH_BYTES])

    def parent_hash(self, page: int) -> bytes:
        """Returns the hash before full page `page`: of the page before it, or the ns_key."""
        require_int("parent_hash", "page", page, 0, self.num_pages)
        return self.page_hash(page - 1) if page else self.ns_key

    def page_body(self, page: int) -> bytes:
        """Returns the body of full page `page`: its token ids and extras."""
        require_int("page_body", "page", page, 0, self.num_pages - 1)
        return b"".join(self._parts(page))

    def fragment(self, page: int) -> tuple[bytes, bytes]:
        """Returns what the chain has of page `page`, full or not, as a body is encoded.

        Returns:
            The body up to its last token, and the extras among these tokens.
        """
        require_int("fragment", "page", page, 0, self.num_pages)
        header, tokens, extras = self._parts(page)
        if page == self.num_pages:
            extras = self._encode_extras(page, self._extras)
        return header + tokens, extras

    def contents(self) -> tuple[bytearray, dict[int, bytes]]:
        """Returns all encoded tokens, and the encoded extras of the full pages that have some;
        both are the chain's own.
        """
        return self._tokens, self._extra_bytes

    def links(self, num_pages: int) -> Iterator[tuple[bytes, bytes]]:
        """Yields (hash, body) of the first `num_pages` full pages."""
        page_bytes = self.page_tokens * TOKEN_BYTES
        header, hashes, tokens = pack("<I", self.page_tokens), self._hashes, self._tokens
        for page in range(min(num_pages, self.num_pages)):
            start = page * page_bytes
            body = (
                header,
                tokens[start : start + page_bytes],
                self._extra_bytes.get(page, NO_EXTRAS),
            )
            yield bytes(hashes[page * HASH_BYTES : (page + 1) * HASH_BYTES]), b"".join(body)

    def _parts(self, page: int) -> tuple[bytes, bytes, bytes]:
        """Returns what the body of a page consists of: header, tokens, extras."""
        page_bytes = self.page_tokens * TOKEN_BYTES
        tokens = self._tokens[page * page_bytes : (page + 1) * page_bytes]
        extras = self._extra_bytes.get(page, NO_EXTRAS)
        return pack("<I", self.page_tokens), bytes(tokens), extras

    def _hash_pages(self, first: int, last: int) -> None:
        page_bytes = self.page_tokens * TOKEN_BYTES
        with memoryview(self._tokens) as tokens:
            pages = tokens[first * page_bytes : last * page_bytes]
            self._run.append(pages, self._hashes)
            pages.release()  # or the tokens could not grow

    def _hash_page_with_extras(self, page: int) -> None:
        end = (page + 1) * self.page_tokens
        mine = [extra for extra in self._extras if extra.position < end]
        self._extras = self._extras[len(mine) :]
        self._extra_bytes[page] = self._encode_extras(page, mine)
        _, tokens, encoded = self._parts(page)
        named = hash_with_extras(self.page_tokens, self.parent_hash(page), tokens, encoded)
        self._hashes += named
        self._run = open_run(first_block(self.page_tokens, named), self.page_tokens)

    def _checked_extras(self, extras: Sequence[Extra], num_new: int) -> list[Extra]:
        first, last = self.num_tokens, self.num_tokens + num_new - 1
        for extra in extras:
            require_type("extend", "each extra", extra, Extra)
            if not first <= extra.position <= last:
                raise ValueError(
                    "[kvstore.extend] an extra must stand among the tokens it comes with, "
                    f"in [{first}, {last}]; got position {extra.position}"
                )
        if len(self._extras) + len(extras) > _MAX_EXTRAS:
            raise ValueError(
                f"[kvstore.extend] at most {_MAX_EXTRAS} extras may wait for their page; "
                f"got {len(self._extras) + len(extras)}"
            )
        return sorted(extras, key=lambda extra: extra.position)

    def _encode_extras(self, page: int, extras: list[Extra]) -> bytes:
        start = page * self.page_tokens
        parts = [pack("<H", len(extras))]
        for extra in extras:
            parts.append(pack("<BII", extra.tag, extra.position - start, len(extra.data)))
            parts.append(extra.data)
        return b"".join(parts)


def _encode_tokens(tokens: TokenIds) -> bytearray | memoryview:
    """Returns the ids as bytes of u32 little-endian: new ones, or those of an array."""
    rule = "[kvstore.extend] tokens must be a 1-D sequence of integers in [0, 2**32)"
    if isinstance(tokens, np.ndarray):
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(f"{rule}; got {tokens.dtype} {tokens.shape}")
        in_range = tokens.dtype.kind == "u" and tokens.dtype.itemsize <= TOKEN_BYTES
        if not (in_range or not tokens.size or 0 <= int(tokens.min()) <= int(tokens.max()) < 2**32):
            raise ValueError(f"{rule}; got values in [{tokens.min()}, {tokens.max()}]")
        return np.ascontiguousarray(tokens, "<u4").view(np.uint8).data
    if isinstance(tokens, (bytes, bytearray, str)):  # array() would take their raw bytes
        raise ValueError(f"{rule}; got {type(tokens).__name__}")
    if HAS_CORE and isinstance(tokens, list):
        encoded = _core.encode_tokens(tokens)  # several times faster than array()
        if encoded is not None:
            return encoded
    try:
        # array("I") is four bytes on every platform CPython runs on, and checks range and type
        # in C: 3x faster than numpy on a list.
        packed = array("I", tokens)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{rule}; got {error}") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return memoryview(packed).cast("B")
