# SPDX-License-Identifier: Apache-2.0
"""Storage below the real prefix store whose loads end when a test says so, and bring as much as it
says. Not a test.

Every page that is published is kept for ever. What a load has not brought yet is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class SlowStorage:
    """Attributes: pages: what is stored, by page hash; loads: those that have not ended."""

    def __init__(self) -> None:
        self.pages: dict[bytes, list[np.ndarray]] = {}
        self.loads: list[SlowLoad] = []

    def below(self, space_of: Callable[[str | None], Any]) -> Callable[[str | None], Any]:
        """The spaces of a store, with this storage below them."""
        return lambda tenant: SlowSpace(self, space_of(tenant))


class SlowSpace:
    def __init__(self, storage: SlowStorage, space: Any) -> None:
        self.storage, self.space = storage, space
        self.chain = space.chain
        self.ns_key = space.ns_key

    def acquire(self, chain, max_tokens=None, *, tail=False):
        most = chain.num_tokens if max_tokens is None else min(chain.num_tokens, max_tokens)
        lease = self.space.acquire(chain, max_tokens, tail=tail)
        hashes = []
        for i in range(lease.num_pages, most // self.space.page_tokens):
            if chain.page_hash(i) not in self.storage.pages:
                break
            hashes.append(chain.page_hash(i))
        return SlowLease(
            self, lease, chain, hashes, lambda: self.space.acquire(chain, max_tokens, tail=tail)
        )

    def reserve(self, chain, first_page, n):
        return SlowWriter(self.storage, self.space.reserve(chain, first_page, n), chain)


class SlowWriter:
    def __init__(self, storage: SlowStorage, writer: Any, chain: Any) -> None:
        self.storage, self.writer, self.chain = storage, writer, chain
        self.page_ids = writer.page_ids
        self.release = writer.release

    def commit(self, n, after):
        view, done = self.writer.view(), self.writer.num_committed
        for i in range(done, done + n):
            layers = [view.page(layer, i).copy() for layer in range(len(view.layer_buffers))]
            self.storage.pages[self.chain.page_hash(self.writer.first_page + i)] = layers
        return self.writer.commit(n, after)

    def copy_tail(self, lease):
        return self.writer.copy_tail(lease.lease)


class SlowLease:
    def __init__(
        self, space: SlowSpace, lease: Any, chain: Any, hashes: list[bytes], again
    ) -> None:
        self.space, self.lease, self.chain, self.hashes = space, lease, chain, hashes
        self.again = again
        self.load_: SlowLoad | None = None

    @property
    def page_ids(self):
        return self.lease.page_ids

    @property
    def tail(self):
        return self.lease.tail

    def release_tail(self):
        self.lease.release_tail()

    @property
    def num_loadable_tokens(self):
        return 0 if self.load_ else len(self.hashes) * self.space.space.page_tokens

    def load(self, deadline=None):
        assert self.load_ is None
        self.load_ = SlowLoad(self)
        self.space.storage.loads.append(self.load_)
        return self.load_

    def release(self):
        self.lease.release()
        if self.load_ is not None:
            self.load_.detached = True


class SlowLoad:
    """Attributes: detached: nobody waits for it; its slots come back when it ends."""

    def __init__(self, lease: SlowLease) -> None:
        self.lease = lease
        self.detached = False
        self.callbacks: list[Callable[[Any], object]] = []
        first_page = lease.lease.num_pages
        self.writer = lease.space.space.reserve(lease.chain, first_page, len(lease.hashes))
        self.each_page(lambda target, _: target.fill(np.nan), len(lease.hashes))

    def each_page(self, change: Callable[[np.ndarray, np.ndarray], object], n: int) -> None:
        view = self.writer.view()
        for i, page_hash in enumerate(self.lease.hashes[:n]):
            for layer, stored in enumerate(self.lease.space.storage.pages[page_hash]):
                target = view.page(layer, i).view(np.float32)
                change(target, stored.view(np.float32))

    def done(self) -> bool:
        return self not in self.lease.space.storage.loads

    def add_done_callback(self, callback):
        self.callbacks.append(callback)

    def end(self, num_pages: int) -> None:
        """So many pages were right, and not one more."""
        self.lease.space.storage.loads.remove(self)
        if not self.detached:
            self.each_page(lambda target, stored: np.copyto(target, stored), num_pages)
            self.writer.commit(num_pages, after=None)
            before, self.lease.lease = self.lease.lease, self.lease.again()
            before.release()
        self.writer.release()
        for callback in self.callbacks:
            callback(self)
