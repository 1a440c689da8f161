# SPDX-License-Identifier: Apache-2.0
"""Tells checkpoints apart by what is on disk, without reading gigabytes of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(model_path: Path) -> str:
    """Hex digest of config.json and of every shard's name, size and modification time.

    Rewriting a shard changes it; renaming or moving the directory does not.
    """
    digest = hashlib.sha256((model_path / "config.json").read_bytes())
    for shard in sorted(model_path.glob("*.safetensors")):
        status = shard.stat()
        digest.update(f"\0{shard.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()
