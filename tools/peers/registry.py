# SPDX-License-Identifier: Apache-2.0
"""Every peer by name. To add one: a class like `Peer` and a line in `PEERS`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from peer_llama_cpp import LlamaCpp
from peer_reference import ReferenceKernel
from shapes import Format, Shape

OURS = "kt"


class Peer(Protocol):
    """Something that computes a MoE layer in a process that speaks child.py's protocol.

    Attributes:
        copies: of the weights that it holds at most, loading included.
    """

    copies: float

    def methods(self, weight_format: Format, shape: Shape) -> tuple[str, ...]:
        """Its names of what it has for the format; none if it cannot compute the layer."""

    def build(self, isa: str, jobs: int) -> None:
        """Download and build what is not there yet. Raises PeerError."""

    def command(self, method: str, isa: str) -> list[str]:
        """The process to start. Raises PeerError if it is not built."""


class KtKernel:
    """The kt_kernel that this Python imports."""

    copies = 1.0

    def methods(self, weight_format: Format, shape: Shape) -> tuple[str, ...]:
        """The format itself."""
        return (weight_format.name,)

    def build(self, isa: str, jobs: int) -> None:
        """Installed already."""

    def command(self, method: str, isa: str) -> list[str]:
        """Its server."""
        server = Path(__file__).with_name("serve_kt.py")
        return [sys.executable, str(server), method, isa]


PEERS: dict[str, Peer] = {
    OURS: KtKernel(),
    "llama.cpp": LlamaCpp(),
    "reference": ReferenceKernel(),
}
