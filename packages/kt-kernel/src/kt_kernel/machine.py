# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine that the operating system tells: CPU, caches, memory, huge pages.

Read anew at each call; what cannot be read is answered by a stated default. Instruction sets are
`kt_kernel.isa`.
"""

import os
import re
from pathlib import Path

__all__ = ("available_memory_bytes", "cpu_name", "huge_pages", "last_level_cache_bytes")

_CPUS = Path("/sys/devices/system/cpu")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Where the caches are hidden, as in some sandboxes: the largest of common desktop processors.
_UNKNOWN_CACHE = 64 << 20


def cpu_name() -> str:
    """The processor's own name, or "unknown"."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else "unknown"


def last_level_cache_bytes() -> int:
    """Total size of the outermost caches of all CPUs that this process may use; 64 MiB if unknown.

    A processor may have several (one per chiplet or socket): what exceeds their sum is read from
    memory.
    """
    caches = {}
    for cpu in os.sched_getaffinity(0):
        levels = {}
        for index in _CPUS.glob(f"cpu{cpu}/cache/index*"):
            sharers, size = _text(index / "shared_cpu_list"), _text(index / "size")
            levels[_text(index / "level")] = (sharers, _kibibytes(size) * 1024)
        if levels:
            sharers, size_bytes = levels[max(levels)]
            caches[sharers] = size_bytes
    return sum(caches.values()) or _UNKNOWN_CACHE


def available_memory_bytes() -> int:
    """Memory this process can get without swapping, within its control groups; 0 if unknown."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for level in (group, *group.parents):
            available = min(available, _left_in(level, *names, unlimited=available))
            if level == root:
                break
    return available


def huge_pages() -> str:
    """Who gets transparent huge pages: "always", "madvise" (weights ask for them) or "never";
    "unknown" where the kernel does not tell.
    """
    found = re.search(r"\[(\w+)\]", _text(_HUGE_PAGES))
    return found[1] if found else "unknown"


def _left_in(group: Path, limit: str, usage: str, reclaimable: str, *, unlimited: int) -> int:
    """Bytes that a control group may still take: its limit less what it uses and cannot drop."""
    limit_text, used = _text(group / limit), _text(group / usage)
    if not (limit_text.isdecimal() and used.isdecimal()):  # "max", or no such file
        return unlimited
    cached = re.search(rf"^{reclaimable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return max(0, int(limit_text) - int(used) + (int(cached[1]) if cached else 0))


def _kibibytes(text: str) -> int:
    """36608 of "36608K", which is how the kernel writes every cache size; 0 of anything else."""
    return int(text[:-1]) if re.fullmatch(r"\d+K", text) else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
