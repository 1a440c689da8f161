# SPDX-License-Identifier: Apache-2.0
"""Tells checkpoints apart by what is on disk, without reading gigabytes of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kt_runtime.checkpoint.gguf import shard_paths


def fingerprint(model_path: Path) -> str:
    """Hex digest of config.json, where there is one, and of every shard's name, size and
    modification time.

    Rewriting a shard changes it; renaming or moving its directory does not.
    """
    if model_path.is_file():
        digest, shards = hashlib.sha256(), shard_paths(model_path)
    else:
        digest = hashlib.sha256((model_path / "config.json").read_bytes())
        shards = sorted(model_path.glob("*.safetensors"))
    for shard in shards:
        status = shard.stat()
        digest.update(f"\0{shard.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()
