# SPDX-License-Identifier: Apache-2.0
"""KV pages on disk without an engine: what `kt cache` shows and drops. The store does the work,
beside whoever uses the directory.

All raise ValueError where there is no store of this version or no safe place, OSError where it
cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kt_kvcache.disk.inspect import RootSummary, Verified


@dataclass(slots=True)
class StoredNamespace:
    """What one model with its settings has of one tenant. Names of neither are stored.

    Attributes:
        num_pages, num_tokens, num_bytes: its pages and what they hold and take.
        num_prefixes: pages that begin a sequence.
        newest_ns: when the last one was written, in ns since 1970.
    """

    num_pages: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_prefixes: int = 0
    newest_ns: int = 0


def namespaces(root: Path) -> dict[bytes, StoredNamespace]:
    """By key, the one written last first. Reads directories only."""
    from kt_kvcache.disk.inspect import stored_pages

    found: dict[bytes, StoredNamespace] = {}
    for page in stored_pages(root.expanduser()):
        space = found.setdefault(page.name.ns_key, StoredNamespace())
        space.num_pages += 1
        space.num_tokens += page.page_tokens
        space.num_bytes += page.num_bytes
        space.num_prefixes += page.name.position == 0
        space.newest_ns = max(space.newest_ns, page.created_ns)
    return dict(sorted(found.items(), key=lambda item: -item[1].newest_ns))


def summarise(root: Path) -> RootSummary:
    """What the directory takes and holds. Reads directories only."""
    from kt_kvcache.disk import inspect

    return inspect.summarise(root.expanduser())


def verify(root: Path, *, scrub: bool = False) -> Verified:
    """Read every page and compare its checksums; with scrub, forget what is damaged."""
    from kt_kvcache.disk import inspect

    return inspect.verify(root.expanduser(), scrub=scrub)


def drop(root: Path, ns_key: bytes = b"") -> int:
    """Forget the pages of a namespace, or all; returns how many."""
    from kt_kvcache.disk import inspect

    return inspect.drop(root.expanduser(), ns_key)
