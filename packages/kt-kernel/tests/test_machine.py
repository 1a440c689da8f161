# SPDX-License-Identifier: Apache-2.0
"""What the operating system tells about the machine, and what is answered where it is silent."""

import os
from pathlib import Path

import pytest

from kt_kernel import machine


def test_facts_of_this_machine_are_plausible():
    assert machine.cpu_name()
    assert 1 << 18 <= machine.last_level_cache_bytes() <= 1 << 40
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 << 20 <= machine.available_memory_bytes() <= total
    assert machine.huge_pages() in ("always", "madvise", "never", "unknown")


def test_silence_of_the_system_is_answered_by_defaults(monkeypatch):
    monkeypatch.setattr(machine, "_text", lambda path: "")
    monkeypatch.setattr(machine, "_CPUS", Path("/nonexistent"))
    assert machine.cpu_name() == "unknown"
    assert machine.last_level_cache_bytes() == 64 << 20
    assert machine.available_memory_bytes() == 0
    assert machine.huge_pages() == "unknown"


@pytest.mark.parametrize(
    ("groups", "files", "available"),
    [
        # An unlimited group; the host has 8 MiB.
        ("0::/a", {"/sys/fs/cgroup/a/memory.max": "max"}, 8 << 20),
        # The parent's limit binds, and the page cache counts as free.
        (
            "0::/a/b",
            {
                "/sys/fs/cgroup/a/b/memory.max": "max",
                "/sys/fs/cgroup/a/memory.max": str(6 << 20),
                "/sys/fs/cgroup/a/memory.current": str(3 << 20),
                "/sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {1 << 20}\nslab 7",
            },
            4 << 20,
        ),
        # Version 1, and a group over its limit.
        (
            "5:cpu:/x\n4:memory:/c",
            {
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes": str(2 << 20),
                "/sys/fs/cgroup/memory/c/memory.usage_in_bytes": str(3 << 20),
            },
            0,
        ),
    ],
)
def test_memory_is_what_the_control_groups_leave(monkeypatch, groups, files, available):
    texts = {
        "/proc/meminfo": "MemFree: 1 kB\nMemAvailable:    8192 kB",
        "/proc/self/cgroup": groups,
    }
    monkeypatch.setattr(machine, "_text", lambda path: (texts | files).get(str(path), ""))
    assert machine.available_memory_bytes() == available


def test_caches_are_counted_once_and_only_the_outermost(monkeypatch, tmp_path):
    for cpu in (0, 1, 2):
        for level, size, sharers in (
            ("1", "32K", str(cpu)),
            ("3", "16384K", "0-1" if cpu < 2 else "2"),
        ):
            index = tmp_path / f"cpu{cpu}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            (index / "level").write_text(level)
            (index / "size").write_text(size)
            (index / "shared_cpu_list").write_text(sharers)
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert machine.last_level_cache_bytes() == 2 * 16384 * 1024
