# SPDX-License-Identifier: Apache-2.0
"""What leases and writers share: one release, and a report if it never came."""

import sys
import warnings
from types import TracebackType
from typing import ClassVar, TypeVar

from kt_kvcache.arena import Arena, PageView
from kt_kvcache.errors import StaleHandle
from kt_kvcache.page import CachedPage
from kt_kvcache.ram_tier import Holding, RamTier

HandleT = TypeVar("HandleT", bound="Handle")


class Handle:
    """Keeps pages alive until ``release``; used by one thread at a time."""

    _kind: ClassVar[str]
    _views_are_writable: ClassVar[bool]

    def __init__(
        self,
        tier: RamTier,
        arena: Arena | None,
        root: CachedPage,
        holding: Holding,
        page_ids: list[int],
    ) -> None:
        """Takes over `holding`, which the tier has just made."""
        self._released = False
        self._tier = tier
        self._arena = arena
        self._root = root
        self._holding = holding
        self._page_ids = tuple(page_ids)
        self._creator = _caller()

    @property
    def num_pages(self) -> int:
        """Number of pages held."""
        return len(self._page_ids)

    @property
    def page_ids(self) -> tuple[int, ...]:
        """Slots of the pages, in the order of the sequence.

        Raises:
            StaleHandle: released, or the space was dropped: the slots may be someone else's.
        """
        self._require_usable("page_ids")
        return self._page_ids

    def view(self) -> PageView:
        """Returns the bytes behind ``page_ids``; read-only for a lease.

        Raises:
            StaleHandle: as for ``page_ids``.
            ValueError: the store was opened without an arena.
        """
        self._require_usable("view")
        return self._view_of(self._page_ids)

    def release(self) -> None:
        """Gives up the pages; idempotent, and allowed after drop and close.

        No kernel may still be using them. O(pages that nobody else holds).
        """
        self._released = True
        self._tier.release(self._holding)

    def _leak(self) -> None:
        """Hands over what is held; called by the finalizer, so it takes no lock."""
        self._tier.leak(self._holding)

    def _view_of(self, page_ids: tuple[int, ...]) -> PageView:
        if self._arena is None:
            raise ValueError("[kvstore.view] the store must have an arena; got arena=None")
        return self._arena.view(page_ids, writable=self._views_are_writable)

    def _require_usable(self, op: str) -> None:
        if self._released:
            raise StaleHandle(f"[kvstore.{op}] the {self._kind} must be open; got a released one")
        if self._tier.closed:
            raise StaleHandle(f"[kvstore.{op}] the store must be open; got a closed one")
        if not self._root.attached:
            raise StaleHandle(f"[kvstore.{op}] the space must be alive; got a dropped one")

    def __enter__(self: HandleT) -> HandleT:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        # `_released` is missing where __init__ never ran.
        if getattr(self, "_released", True):
            return
        self._leak()
        warnings.warn(
            f"[kvstore.{self._kind}] a {self._kind} must be released; got {self.num_pages} pages "
            f"leaked by {self._creator}",
            ResourceWarning,
            stacklevel=1,
            source=self,
        )


def _caller() -> str:
    """Names the nearest frame outside this package; one frame walk is ~1 us, a traceback 50."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
