# SPDX-License-Identifier: Apache-2.0
"""Random calls of two processes on one root, with restarts, kills, faults and damage, against a
dict that says what may be found and what must be.

Every page that a load brings is compared byte by byte with what its hash says.
"""

import errno
import time
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kt_kvcache import OutOfPages

from .known_pages import SLOT_BYTES, assert_right, crowd_out, fill, loaded, space_of
from .sim_files import SimDisk, SimFiles
from .sim_store import RANDOM_CALLS, look, sim_store

# A passing run takes seconds; after a failure Hypothesis may shrink it for five minutes.
pytestmark = pytest.mark.timeout(600)

DISK_PAGES = 160  # more than the pages that there can be: 2 tenants x 62, and those that crowd out
TENANTS = ["alice", "bob"]


def no_fault(op: str, name: str) -> None:
    """Lets everything happen."""


processes = st.integers(0, 1)
tenants = st.integers(0, 1)
# A prompt is a path in a binary tree, a page for each turn.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(
    lambda turns: [turn for turn in turns for _ in range(4)]
)


def wait_until(holds, timeout=30) -> None:
    give_up = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.001)


class DiskMachine(RuleBasedStateMachine):
    write_policy = "through"

    def __init__(self):
        super().__init__()
        self.disk = SimDisk()
        self.files = [SimFiles(self.disk), SimFiles(self.disk)]
        self.stores = [self.opened(0), self.opened(1)]
        self.written: set[tuple[int, tuple[int, ...]]] = set()  # what anybody ever computed
        self.must: set[tuple[int, tuple[int, ...]]] = set()  # acknowledged, and nothing happened
        self.leases = []
        self.faults = [[0], [0]]  # how many calls of each process will still fail

    def opened(self, process):
        return sim_store(self.files[process], disk_pages=DISK_PAGES, write_policy=self.write_policy)

    def space(self, process, tenant):
        return space_of(self.stores[process], TENANTS[tenant])

    def prefixes(self, tenant, tokens):
        return {(tenant, tuple(tokens[:end])) for end in range(4, len(tokens) + 1, 4)}

    # Calls

    @rule(process=processes, tenant=tenants, tokens=prompts)
    def compute(self, process, tenant, tokens):
        self.written |= self.prefixes(tenant, tokens)
        with suppress(OutOfPages):  # leases and detached loads may have the rest
            fill(self.space(process, tenant), tokens)

    @rule(process=processes, tenant=tenants, tokens=prompts, durable=st.booleans())
    def compute_and_flush(self, process, tenant, tokens, durable):
        self.compute(process, tenant, tokens)
        if self.stores[process].flush(durable=durable).result(30):
            space = self.space(process, tenant)
            chain = space.chain(tokens)
            if self.stores[process]._disk.count(space.ns_key, chain) == chain.num_pages:
                self.must |= self.prefixes(tenant, tokens)

    @rule(process=processes, tenant=tenants, tokens=prompts, crowd=st.booleans())
    def find(self, process, tenant, tokens, crowd):
        store, space = self.stores[process], self.space(process, tenant)
        look(store)
        if not self.leases:  # what a cancelled load still reads takes memory
            wait_until(lambda: store.stats().reserved_pages == 0)
        if crowd:
            with suppress(OutOfPages):
                crowd_out(store)
        found = loaded(space, space.chain(tokens))
        if self.leases:  # memory may be too full to load all
            self.must.clear()
        assert found == 0 or (tenant, tuple(tokens[:found])) in self.written
        promised = self.prefixes(tenant, tokens) & self.must
        longest = max((len(prefix) for _, prefix in promised), default=0)
        if not self.faults[process][0]:
            assert found >= longest

    @rule(process=processes, tenant=tenants, tokens=prompts, load=st.booleans())
    def hold(self, process, tenant, tokens, load):
        space = self.space(process, tenant)
        chain = space.chain(tokens)
        lease = space.acquire(chain)
        self.leases.append((process, lease, chain, lease.load(deadline=20) if load else None))

    @rule(cancel=st.booleans())
    def let_go(self, cancel):
        if not self.leases:
            return
        _, lease, chain, load = self.leases.pop(0)
        if load is not None:
            if cancel:
                load.cancel()
            load.result(30)
            assert_right(lease, chain)
        lease.release()

    @rule(process=processes, tenant=tenants, tokens=prompts)
    def drop(self, process, tenant, tokens):
        for store in self.stores:
            store.flush().result(30)
        space = self.space(process, tenant)
        chain = space.chain(tokens)
        self.forget_acknowledged()
        try:
            space.drop(chain)
        except OSError:
            return
        assert loaded(space, chain) < len(tokens)

    @rule(process=processes, kill=st.booleans())
    def restart(self, process, kill):
        self.release_of(process)
        files = self.files[process]
        if kill:
            with self.disk.lock:  # from here on nothing that its threads do happens
                files.read_only = True
                for _, inode in files.open_files.values():
                    if inode.locked_by and inode.locked_by[0] is files:
                        inode.locked_by = None
        self.stores[process].close()
        self.files[process] = SimFiles(self.disk)
        self.faults[process] = [0]
        self.stores[process] = self.opened(process)

    @rule(
        process=processes,
        op=st.sampled_from(["pwritev", "pwrite", "preadv", "pread", "open", "allocate", "sync"]),
        code=st.sampled_from([errno.EIO, errno.ENOSPC, errno.EMFILE]),
        times=st.integers(1, 3),
    )
    def fail(self, process, op, code, times):
        left = [times]

        def fault(asked, name):
            if asked == op and left[0] > 0:
                left[0] -= 1
                raise OSError(code, "told to fail")

        self.forget_acknowledged()
        self.files[process].fault = fault
        self.faults[process] = left

    @rule(process=processes)
    def mend(self, process):
        self.faults[process] = [0]
        self.files[process].fault = no_fault
        worker = self.stores[process]._disk._worker
        worker.health.retry_at = worker._room.full_until = 0.0

    @rule(file=st.integers(0, 10**6), at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, file, at, bit):
        with self.disk.lock:
            names = sorted(name for name in self.disk.names if ".kv" in name)
            if names:
                content = self.disk.names[names[file % len(names)]].content
                used = min(len(content), 4 * SLOT_BYTES)  # low slots are taken first
                if used:
                    content[at % used] ^= 1 << bit
        self.forget_acknowledged()

    # What must hold after each

    @invariant()
    def memory_is_whole_and_the_budget_kept(self):
        for store in self.stores:
            store.check_integrity()
        with self.disk.lock:
            used = sum(len(i.content) for name, i in self.disk.names.items() if ".kv" in name)
        assert used <= self.stores[0].stats().disk.budget_bytes

    def forget_acknowledged(self):
        self.must.clear()

    def release_of(self, process):
        for entry in [entry for entry in self.leases if entry[0] == process]:
            entry[1].release()
            self.leases.remove(entry)

    def teardown(self):
        for process, store in enumerate(self.stores):
            self.release_of(process)
            self.mend(process)
            store.flush(durable=False).result(30)
            look(store)
            stats = store.stats()
            assert (stats.open_leases, stats.open_writers) == (0, 0)
            store.close()


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = RANDOM_CALLS


class SelectiveMachine(DiskMachine):
    write_policy = "selective"


class BackMachine(DiskMachine):
    write_policy = "back"


TestSelectiveMachine, TestBackMachine = SelectiveMachine.TestCase, BackMachine.TestCase
for case in (TestSelectiveMachine, TestBackMachine):
    case.settings = settings(RANDOM_CALLS, max_examples=15)
