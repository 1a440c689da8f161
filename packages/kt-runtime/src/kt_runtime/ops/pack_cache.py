# SPDX-License-Identifier: Apache-2.0
"""Packed experts kept on disk between starts, for one checkpoint with one set of settings. Packs
nothing; the files are kt_kernel's (`Experts.save`), whose every matrix has a checksum.

    DIR/<digest of the weights>/<key of the experts>.safetensors and .json

The JSON names the key again and the file's header checksum: it is written last, so that it stands
for a whole file, and a file that belongs to other experts is not taken for these.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kt_kernel import Experts, ThreadPool
from kt_kernel._core import LAYOUT_VERSION
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.protocols import Projection

_log = logging.getLogger(__name__)


class PackCache:
    """A directory of packed experts. Safe with several processes at once; never fails a load: what
    cannot be read is packed again, what cannot be written is only warned of.

    Args:
        directory: made if it is not there; what is made in it is for this user alone.
        fingerprint: of the checkpoint, whose weights decide which experts belong to it.
    """

    def __init__(self, directory: Path, fingerprint: Fingerprint) -> None:
        self._directory = directory / fingerprint.weights

    @property
    def is_empty(self) -> bool:
        """Whether nothing was kept of this checkpoint."""
        return not any(self._directory.glob("*.json"))

    def key(self, name: str, sizes: tuple[int, ...], formats: Mapping[Projection, str]) -> str:
        """What tells one layer's experts from all others of the checkpoint."""
        told = json.dumps([name, sizes, sorted(formats.items()), LAYOUT_VERSION])
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def load(self, key: str, pool: ThreadPool) -> Experts | None:
        """The experts kept under the key, mapped; None if there are none, or none that can be
        trusted."""
        try:
            if self._directory.stat().st_uid != os.getuid():
                raise ValueError(f"{self._directory} belongs to another user")
            kept = json.loads(self._json(key).read_text())
            path = self._weights(key)
            if kept != {"key": key, "header_checksum": _header_checksum(path)}:
                raise ValueError(f"{path} is not what {key}.json says")
            return Experts.load(path, pool=pool)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            _log.warning("pack cache: packing again: %s", error)
            return None

    def keep(self, key: str, experts: Experts, pool: ThreadPool) -> None:
        """Write experts for the next start."""
        temporary = self._directory / f".kt-{secrets.token_hex(8)}.tmp"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._weights(key)
            experts.save(path, pool=pool)
            path.chmod(0o600)
            kept = {"key": key, "header_checksum": _header_checksum(path)}
            temporary.touch(mode=0o600, exist_ok=False)
            temporary.write_text(json.dumps(kept))
            temporary.replace(self._json(key))
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            _log.warning("pack cache: not kept: %s", error)

    def _weights(self, key: str) -> Path:
        return self._directory / f"{key}.safetensors"

    def _json(self, key: str) -> Path:
        return self._directory / f"{key}.json"


def _header_checksum(path: Path) -> str:
    with safe_open(path, framework="np") as opened:
        return str((opened.metadata() or {}).get("header_checksum"))
