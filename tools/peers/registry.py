# SPDX-License-Identifier: Apache-2.0
"""Every peer by name. To add one: a class like `Peer` and a line in `PEERS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from peer_llama_cpp import LlamaCpp
from peer_reference import ReferenceKernel
from shapes import Format

OURS = "kt"


class Peer(Protocol):
    """Something that computes a MoE layer in a process that speaks child.py's protocol."""

    def method(self, weight_format: Format) -> str | None:
        """What it calls the format; None if it has none like it."""

    def build(self, isa: str, jobs: int) -> None:
        """Download and build what is not there yet. Raises PeerError."""

    def command(self, weight_format: Format, isa: str) -> list[str]:
        """The process to start. Raises PeerError if it is not built."""


class KtKernel:
    """The kt_kernel that this Python imports."""

    def method(self, weight_format: Format) -> str | None:
        """The row is named after it."""
        return weight_format.name

    def build(self, isa: str, jobs: int) -> None:
        """Installed already."""

    def command(self, weight_format: Format, isa: str) -> list[str]:
        """Its server."""
        server = Path(__file__).with_name("serve_kt.py")
        return [sys.executable, str(server), weight_format.name, isa]


PEERS: dict[str, Peer] = {
    OURS: KtKernel(),
    "llama.cpp": LlamaCpp(),
    "reference": ReferenceKernel(),
}
