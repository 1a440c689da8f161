# SPDX-License-Identifier: Apache-2.0
"""The reference system's CPU kernel as a peer: the AVX2 extension of its wheel, nothing else of it.

Its own package is not installed: it has our package's import name, and wants a CUDA build of torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from child import PeerError
from fetch import BUILD, fetch, home
from shapes import Format, Shape

REQUIREMENT = "kt-kernel==0.7.2"
PYTHON = f"{sys.version_info.major}{sys.version_info.minor}"  # its wheel is for one Python


class ReferenceKernel:
    """Always on AVX2: its AVX-512 extensions have other classes, that need AMX or BF16."""

    copies = 2.0  # some methods read what they are given, some what they made of it

    def methods(self, weight_format: Format, shape: Shape) -> tuple[str, ...]:
        """Its names of the format; it has no biases."""
        return () if shape.biases else weight_format.reference

    def build(self, isa: str, jobs: int) -> None:
        """Unpacks a wheel."""
        fetch(REQUIREMENT, self.directory(), "--only-binary", ":all:")

    def command(self, method: str, isa: str) -> list[str]:
        """Our server around its extension."""
        found = list(self.directory().glob(f"kt_kernel/_kt_kernel_ext_avx2.cpython-{PYTHON}-*.so"))
        if not found:
            raise PeerError(f"reference: not there for Python {PYTHON}; `{BUILD}` gets it")
        server = Path(__file__).with_name("serve_reference.py")
        return [sys.executable, str(server), str(found[0]), method]

    def directory(self) -> Path:
        """The unpacked wheel."""
        return home() / "reference" / f"{REQUIREMENT}-cp{PYTHON}"
