# SPDX-License-Identifier: Apache-2.0
"""Fails when a source file is so long that it surely has more than one job, or is not opened by
its SPDX line.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HARD_LIMIT = 600  # lines; about 150 is typical, 400 a reason to think, 600 a reason to split
SUFFIXES = (".py", ".pyi", ".h", ".cpp")


def main() -> int:
    """List offenders on stderr; 1 if there are any."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    offenders = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if "third_party" in path.parts:  # others' files are as they are
            continue
        if path.suffix not in SUFFIXES or not path.exists() or path.stat().st_size == 0:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > HARD_LIMIT:
            offenders.append(f"{name}: {len(lines)} lines; split it (limit {HARD_LIMIT})")
        if "SPDX-License-Identifier" not in lines[0]:
            offenders.append(f"{name}: the first line must be the SPDX licence line")
    for offender in offenders:
        print(offender, file=sys.stderr)
    return 1 if offenders else 0


if __name__ == "__main__":
    sys.exit(main())
