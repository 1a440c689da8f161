# SPDX-License-Identifier: Apache-2.0
"""Tells checkpoints apart by what is on disk: the one place that decides which weights are the same
for the prefix store and for packed experts. Keeps nothing."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import ModelIdentity

# Of each file, so many samples of this size are compared, spread evenly, the last one at its end.
_SAMPLE = 1 << 20
_NUM_SAMPLES = 16
_DIGITS = 32  # of a digest in hex: 128 bits, which no two checkpoints share by chance


class Fingerprint:
    """Digests of one model's files, each taken when it is first asked for and kept from then on.

    Args:
        files: the model.
        identity: "sampled" compares each weight file's name, size, time of change, header and 16
            samples of 1 MiB; "full" its name and every byte, so that a copy with new times is the
            same checkpoint.

    Attributes:
        files: as given.

    Every property raises OSError where a file cannot be read.
    """

    def __init__(self, files: ModelFiles, identity: ModelIdentity = "sampled") -> None:
        self.files = files
        self._identity = identity

    @cached_property
    def weights(self) -> str:
        """Of the weight files."""
        headers: dict[Path, int] = {}  # where the first tensor begins
        for tensor in self.files.read_ahead.tensors():
            headers[tensor.file] = min(tensor.begin, headers.get(tensor.file, tensor.begin))
        digest = hashlib.sha256(self._identity.encode())
        for file, header in sorted(headers.items()):
            part = _all_of(file) if self._identity == "full" else _samples_of(file, header)
            digest.update(json.dumps([file.name, part]).encode())
        return digest.hexdigest()[:_DIGITS]

    @cached_property
    def config(self) -> str | None:
        """Of config.json, which has the shapes and the rotary settings; None for a GGUF file, whose
        header has them."""
        return self._digest_of("config.json")

    @cached_property
    def tokenizer(self) -> str | None:
        """Of tokenizer.json; None for a GGUF file, whose header has it, or where there is none."""
        return self._digest_of("tokenizer.json")

    def _digest_of(self, name: str) -> str | None:
        file = self.files.path / name
        if self.files.gguf is not None or not file.exists():
            return None
        return hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]


def _all_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _samples_of(file: Path, header: int) -> str:
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        told = json.dumps([status.st_size, status.st_mtime_ns, header])
        digest = hashlib.sha256(told.encode())
        digest.update(opened.read(header))
        last = max(0, status.st_size - _SAMPLE)
        for i in range(_NUM_SAMPLES):
            opened.seek(last * i // (_NUM_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE))
    return digest.hexdigest()
