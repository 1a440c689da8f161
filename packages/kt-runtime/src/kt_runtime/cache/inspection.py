# SPDX-License-Identifier: Apache-2.0
"""KV pages on disk without an engine: what `kt cache` shows and drops. The store does the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kt_kvcache.disk.inspection import Inspection


def inspect_store(root: Path) -> Inspection:
    """Open a `kv_disk_path`, beside whoever uses it; a context.

    Raises:
        ValueError: there is no store of this version, or it is no safe place.
        OSError: it cannot be read.
    """
    from kt_kvcache.disk.inspection import Inspection

    return Inspection(root.expanduser())
