# SPDX-License-Identifier: Apache-2.0
"""What the store raises beyond ValueError, and the checks its calls share; no logging."""

from math import isnan
from typing import Any

import numpy as np


class OutOfPages(RuntimeError):
    """Raised by ``Space.reserve`` when free and evictable pages together do not suffice.

    Nothing has changed in the store: no page was evicted or taken.

    Attributes:
        num_requested: pages asked for.
        num_free: pages that hold nothing.
        num_evictable: cached pages that nobody holds.
        num_pages: size of the store in pages.
    """

    def __init__(
        self, num_requested: int, num_free: int, num_evictable: int, num_pages: int
    ) -> None:
        super().__init__(
            "[kvstore.reserve] free plus evictable pages must cover the request; "
            f"got {num_requested} requested, {num_free} free, {num_evictable} evictable "
            f"of {num_pages}"
        )
        self.num_requested = num_requested
        self.num_free = num_free
        self.num_evictable = num_evictable
        self.num_pages = num_pages


class StaleHandle(ValueError):
    """A lease or writer was used after its release, or its store or space is gone."""


class IntegrityError(RuntimeError):
    """``KVStore.check_integrity`` found a broken invariant: a bug in this package."""


def require_int(op: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns `value` as int, or raises ValueError unless it is an integer in [low, high]."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_int and value >= low and (high is None or value <= high):
        return int(value)
    rule = f">= {low}" if high is None else f"in [{low}, {high}]"
    raise ValueError(f"[kvstore.{op}] {name} must be an integer {rule}; got {value!r}")


def is_number(value: Any) -> bool:
    """Returns whether `value` is a real number, infinity included, that a float can be made of."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return not isnan(float(value))
    except OverflowError:
        return False


def require_seconds(op: str, name: str, value: Any) -> float:
    """Returns `value` as float, or raises ValueError unless it is a number >= 0."""
    if is_number(value) and value >= 0:
        return float(value)
    raise ValueError(f"[kvstore.{op}] {name} must be seconds >= 0; got {value!r}")


def require_type(op: str, name: str, value: Any, *kinds: type) -> None:
    """Raises ValueError unless `value` is one of the `kinds`."""
    if not isinstance(value, kinds):
        got = "None" if value is None else type(value).__name__
        rule = " or ".join(map(_article, kinds))
        raise ValueError(f"[kvstore.{op}] {name} must be {rule}; got {got}")


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
