# SPDX-License-Identifier: Apache-2.0
"""Lets the environment that runs this see the libraries of this repository's .venv, after its own.
For asv: torch is large, and its CPU build is not what a plain install brings.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Write the path into this environment's site-packages; 1 where there is no .venv."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries = ROOT / ".venv" / "lib" / version / "site-packages"
    if not libraries.is_dir():
        print(f"{libraries} must exist; run `make setup` first", file=sys.stderr)
        return 1
    (Path(sysconfig.get_path("purelib")) / "borrowed.pth").write_text(f"{libraries}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
