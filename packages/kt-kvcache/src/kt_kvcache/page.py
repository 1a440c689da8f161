# SPDX-License-Identifier: Apache-2.0
"""One page in the index, and the states of a page being written; data only, no rules."""

from enum import Enum


class PageState(Enum):
    """What became of a writer's page."""

    RESERVED = "reserved"
    """Writable, not committed yet."""
    PUBLISHED = "published"
    """In the index: others may acquire it, nobody may write it."""
    PRESENT = "present"
    """Another page with this hash was there first; this one stays private until release."""
    UNLINKED = "unlinked"
    """Its parent is not cached (evicted or dropped): stays private until release."""


class Namespace:
    """What all pages of a namespace have in common; equal only to itself.

    Attributes:
        num_pages: its pages in the index, the root not counted.
    """

    __slots__ = ("num_pages",)

    def __init__(self) -> None:
        """Starts empty."""
        self.num_pages = 0


class CachedPage:
    """A node of the trie of cached pages; equal only to itself.

    Attributes:
        hash: chain hash, h_i.
        parent: page before it; None only for the root of a namespace, which holds no tokens.
        namespace: that namespace.
        body: hashed body (token ids and extras), compared on every match.
        page_id: its slot; -1 for a root.
        children: children in the index, in the order of their bodies: what agrees longest with
            another body stands beside the place where that body would stand.
        pins: holders of this very page, plus children (in the index or dropped) with pins.
            A root starts with one pin, so that it never becomes evictable.
        num_branches: children it has ever had: how often a sequence went its own way from here.
            Those of an earlier stay in the cache count as far as the policy remembers them.
        last_used: clock of the index when its pins last fell to zero: the number of such moments
            in memory, ns since 1970 on disk.
        born: when its KV was computed, in ns since 1970; 0 for a root.
        kept_until: when a soft pin ends, in seconds of the store's clock; 0 without one.
        whole: whether all its bytes are there; a head has only those of the groups without a window
            (window.py). On disk, all pages are whole. A page that is whole stays so.
        attached: whether it is in the index; a dropped page lives on, detached, while pinned.
    """

    __slots__ = (
        "attached",
        "body",
        "born",
        "children",
        "hash",
        "kept_until",
        "last_used",
        "namespace",
        "num_branches",
        "page_id",
        "parent",
        "pins",
        "whole",
    )

    def __init__(
        self, page_hash: bytes, parent: "CachedPage | None", body: bytes, page_id: int
    ) -> None:
        """Makes an attached page with one pin and no children."""
        self.hash = page_hash
        self.parent = parent
        self.namespace: Namespace = Namespace() if parent is None else parent.namespace
        self.body = body
        self.page_id = page_id
        self.children: list[CachedPage] = []
        self.pins = 1
        self.num_branches = 0
        self.last_used = 0
        self.born = 0
        self.kept_until = 0.0
        self.attached = True
        self.whole = True
