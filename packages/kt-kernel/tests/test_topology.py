# SPDX-License-Identifier: Apache-2.0
"""What the pool makes of a machine: cores, memory nodes and control groups of made-up /sys and
/proc trees.
"""

import os
from pathlib import Path

import pytest

from kt_kernel import ThreadPool, _core, usable_cores

V2_MOUNT = "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def machine(
    root: Path, cores: list[tuple[int, ...]], nodes: dict[int, str] | None = None
) -> list[int]:
    """cores: hyper-threads of each; nodes: CPU list of each. Returns all CPUs."""
    for siblings in cores:
        for cpu in siblings:
            path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            write(root, path, ",".join(map(str, siblings)))
    if nodes is not None:
        write(root, "sys/devices/system/node/online", ",".join(map(str, nodes)))
        for node, cpus in nodes.items():
            write(root, f"sys/devices/system/node/node{node}/cpulist", cpus)
    return sorted(cpu for siblings in cores for cpu in siblings)


def group(root: Path, mounts: list[str], groups: list[str], files: dict[str, str]) -> None:
    write(root, "proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]))
    write(root, "proc/self/cgroup", "\n".join(groups))
    for path, text in files.items():
        write(root, f"sys/fs/cgroup/{path}", text)


def usable(root: Path, cpus: list[int]) -> list[int]:
    return _core.usable_cores(cpus, str(root))


def test_hyper_threads_are_one_core(tmp_path):
    cpus = machine(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert usable(tmp_path, cpus) == [0, 1, 2, 3]


def test_cores_outside_the_affinity_do_not_count(tmp_path):
    machine(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert usable(tmp_path, [1, 4, 5, 6]) == [1, 4, 6]


def test_cpus_of_unknown_siblings_are_cores(tmp_path):
    assert usable(tmp_path, [0, 1]) == [0, 1]


def test_cores_of_all_nodes_in_the_order_of_nodes(tmp_path):
    """Node numbers may have gaps, a node may have memory only, CPU numbers may alternate."""
    cpus = machine(tmp_path, [(0,), (1,), (2,), (3,)], {0: "0,2", 3: "1,3", 4: ""})
    assert usable(tmp_path, cpus) == [0, 2, 1, 3]


def test_a_quota_spreads_the_pool_over_the_nodes(tmp_path):
    cpus = machine(tmp_path, [(c, c + 8) for c in range(8)], {0: "0-3,8-11", 1: "4-7,12-15"})
    group(tmp_path, [V2_MOUNT], ["0::/"], {"cpu.max": "400000 100000"})
    assert usable(tmp_path, cpus) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("max 100000", 4),
        ("100000 100000", 1),
        ("250000 100000", 2),  # three would be throttled
        ("50000 100000", 1),  # never none
        ("900000 100000", 4),  # more than there is
        ("garbage", 4),
        ("100000 0", 4),
    ],
)
def test_quota_of_cgroup_v2(tmp_path, quota, threads):
    cpus = machine(tmp_path, [(0,), (1,), (2,), (3,)])
    group(tmp_path, [V2_MOUNT], ["0::/app"], {"app/cpu.max": quota})
    assert len(usable(tmp_path, cpus)) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("200000", 2), ("", 4)])
def test_quota_of_cgroup_v1(tmp_path, quota, threads):
    cpus = machine(tmp_path, [(0,), (1,), (2,), (3,)])
    files = {
        "cpu,cpuacct/app/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/app/cpu.cfs_period_us": "100000",
    }
    # Beside it a v2 hierarchy that controls no CPU, as hybrid systems have it.
    mounts = [V1_MOUNT, "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"]
    group(tmp_path, mounts, ["3:cpuset:/", "2:cpu,cpuacct:/app", "0::/app"], files)
    assert len(usable(tmp_path, cpus)) == threads


@pytest.mark.parametrize("tight", ["", "a/", "a/b/"])
def test_the_tightest_group_on_the_way_up_counts(tmp_path, tight):
    cpus = machine(tmp_path, [(c,) for c in range(8)])
    files = {f"{path}cpu.max": "600000 100000" for path in ("", "a/", "a/b/")}
    group(tmp_path, [V2_MOUNT], ["0::/a/b"], files | {f"{tight}cpu.max": "200000 100000"})
    assert len(usable(tmp_path, cpus)) == 2


def test_a_container_sees_its_own_part_of_the_hierarchy(tmp_path):
    """The group's path is the host's, the mount begins at the container."""
    cpus = machine(tmp_path, [(c,) for c in range(8)])
    mount = V2_MOUNT.replace("0:26 /", "0:26 /docker/c0ffee")
    files = {"cpu.max": "500000 100000", "inner/cpu.max": "300000 100000"}
    group(tmp_path, [mount], ["0::/docker/c0ffee/inner"], files)
    assert len(usable(tmp_path, cpus)) == 3
    write(tmp_path, "proc/self/cgroup", "0::/docker/c0ffee5")  # another one
    assert len(usable(tmp_path, cpus)) == 5


def test_the_pool_has_the_size_that_the_machine_allows(tmp_path):
    cpus = _core.allowed_cpus()
    machine(tmp_path, [tuple(cpus)])
    assert _core.ThreadPool(root=str(tmp_path)).num_threads == 1


def test_usable_cores_are_what_a_pool_takes(monkeypatch):
    monkeypatch.delenv("KT_THREADS", raising=False)
    cores = usable_cores()
    assert set(cores) <= os.sched_getaffinity(0)
    assert ThreadPool(cores=cores).num_threads == ThreadPool().num_threads == len(cores)
