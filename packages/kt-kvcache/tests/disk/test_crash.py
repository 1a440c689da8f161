# SPDX-License-Identifier: Apache-2.0
"""A power cut after every single change of a file, with any part of what was not synced lost.

Whatever is left, opening it finds right pages or none; what was acknowledged is there; what was
dropped is not. The same for a power cut while a store opens what an earlier one left.
"""

import random
from dataclasses import dataclass, field

import pytest

from .known_pages import fill, loaded, space_of
from .sim_files import SimDisk, SimFiles
from .sim_store import sim_store

A, B, C, D = ([i] * 8 + list(range(12)) for i in range(4))


@dataclass
class Marks:
    """What must hold from a point of the log on."""

    present: list[tuple[int, int, list[int]]] = field(default_factory=list)  # from, to, tokens
    absent: list[tuple[int, list[int]]] = field(default_factory=list)


def session(disk: SimDisk, disk_pages: int) -> Marks:
    """Writes, flushes, evicts (where there is little room), drops and closes."""
    marks = Marks()
    store = sim_store(SimFiles(disk), disk_pages=disk_pages)
    space = space_of(store)
    fill(space, A)
    assert store.flush().result(30)
    start_a = len(disk.log)
    fill(space, B)
    assert store.flush(durable=False).result(30)
    fill(space, C)
    assert store.flush().result(30)
    start_c = len(disk.log)
    marks.present.append((start_a, len(disk.log), A))
    space.drop(space.chain(A[:8]))
    marks.absent.append((len(disk.log), A))
    fill(space, D)
    store.close()
    end = 10**9
    marks.present += [(start_c, end, C), (start_c, end, B), (len(disk.log), end, D)]
    return marks


def check(disk: SimDisk, marks: Marks, length: int, disk_pages: int, *, roomy: bool) -> None:
    store = sim_store(SimFiles(disk), disk_pages=disk_pages)
    space = space_of(store)
    found = {tuple(t): loaded(space, space.chain(t)) for t in (A, B, C, D)}  # right, or it fails
    store.check_integrity()
    assert store.stats().open_leases == store.stats().reserved_pages == 0
    assert store.stats().disk.counters.io_errors == 0
    store.close()
    for start, tokens in marks.absent:
        assert length < start or found[tuple(tokens)] <= 4
    if roomy:
        for start, end, tokens in marks.present:
            assert not start <= length < end or found[tuple(tokens)] == 20


@pytest.mark.parametrize("disk_pages", [64, 9])
@pytest.mark.parametrize("keep", [0, 0.5, 1])
def test_a_power_cut_at_any_moment(disk_pages, keep):
    disk = SimDisk()
    marks = session(disk, disk_pages)
    rng = random.Random(f"{disk_pages} {keep}")
    lengths = range(len(disk.log) + 1)
    assert len(lengths) > 25
    for length in lengths:
        left = disk.crashed(length, rng, keep)
        check(left, marks, length, disk_pages, roomy=disk_pages == 64)


def test_power_cuts_while_opening_what_a_power_cut_left():
    disk = SimDisk()
    marks = session(disk, 64)
    rng = random.Random(5)
    num_recoveries = 0
    for length in range(0, len(disk.log) + 1, 2):
        left = disk.crashed(length, rng, 0.5)
        before = {name: bytes(inode.content) for name, inode in left.names.items()}
        sim_store(SimFiles(left)).close()
        for cut in range(len(left.log)):
            again = SimDisk()
            for name, raw in before.items():
                files = SimFiles(again)
                fd = files.open(name, create=True)
                files.pwrite(fd, raw, 0)
                files.sync(fd)
                files.sync_names()
            base = len(again.log)
            sim_store(SimFiles(again)).close()
            twice = again.crashed(min(base + cut, len(again.log)), rng, 0.5)
            check(twice, marks, length, 64, roomy=True)
            num_recoveries += 1
    assert num_recoveries > 20
