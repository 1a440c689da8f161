# SPDX-License-Identifier: Apache-2.0
"""How much of one cached page agrees with a chain that leaves it midway; it searches nothing.

The KV of a token depends on what stands before it only. So a page whose first k tokens, and the
extras among them, are those of a chain holds that chain's KV for these k tokens.
"""

from collections.abc import Iterator
from struct import calcsize, unpack_from
from typing import NamedTuple

from kt_kvcache.hashing import HEADER_BYTES, NO_EXTRAS, TOKEN_BYTES

_EXTRA_FORMAT = "<BII"  # tag, offset in the page, length of the data that follow


class Tail(NamedTuple):
    """The part of a page that continues a leased prefix.

    Attributes:
        num_tokens: leading tokens of the page that are the chain's, at least one.
        page_id: its slot; the rest of its bytes belongs to another sequence.
    """

    num_tokens: int
    page_id: int


def common_tokens(body: bytes, page_tokens: int, fragment: tuple[bytes, bytes]) -> int:
    """Returns how many leading tokens of a page are those of a chain's page.

    Args:
        body: of the cached page, see chain.py.
        page_tokens: tokens per page.
        fragment: what the chain has of its page, see ``Chain.fragment``.
    """
    end = HEADER_BYTES + page_tokens * TOKEN_BYTES
    encoded, extras = fragment
    num_bytes = _common_bytes(body[:end], encoded)
    num_tokens = max(0, num_bytes - HEADER_BYTES) // TOKEN_BYTES
    if body[end:] != extras:
        return min(num_tokens, _first_difference(body[end:], extras))
    # Equal extras after the common tokens do not matter: those are not shared anyway.
    return num_tokens


def _common_bytes(one: bytes, other: bytes) -> int:
    num_bytes = min(len(one), len(other))
    # As integers the first byte weighs most: no loop over bytes in Python.
    difference = int.from_bytes(one[:num_bytes], "big") ^ int.from_bytes(other[:num_bytes], "big")
    return num_bytes - (difference.bit_length() + 7) // 8


def _first_difference(one: bytes, other: bytes) -> int:
    """Returns the offset in the page from which on two lists of extras are not the same."""
    mine, theirs = list(_extras(one)), list(_extras(other))
    num_same = 0
    for extra, counterpart in zip(mine, theirs, strict=False):
        if extra != counterpart:
            break
        num_same += 1
    return min(extra[0] for extra in (*mine[num_same:], *theirs[num_same:]))


def _extras(encoded: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields (offset, tag, data) of each extra of a page."""
    (num_extras,) = unpack_from("<H", encoded)
    at = len(NO_EXTRAS)
    for _ in range(num_extras):
        tag, offset, length = unpack_from(_EXTRA_FORMAT, encoded, at)
        at += calcsize(_EXTRA_FORMAT)
        yield offset, tag, encoded[at : at + length]
        at += length
