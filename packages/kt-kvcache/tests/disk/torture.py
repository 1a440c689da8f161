# SPDX-License-Identifier: Apache-2.0
"""Kills stores with SIGKILL while they write, again and again, on one root:
``python torture.py ROOT --cycles 10000``. A script, run with few cycles by test_torture.py.

In each cycle two processes write, flush and drop until they are killed at a random moment, inside
a write as likely as anywhere. Then a fresh process reads everything: what was acknowledged must be
there, and every page that is found must be right. This process only forks and never has threads.
"""

import argparse
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from known_pages import GEOMETRY, IDENTITY, PAGE_TOKENS, SLOT_BYTES, STRIDES, fill, loaded

from kt_kvcache import Arena, KVStore, Space, StoreConfig
from kt_kvcache.disk.inspect import verify

NUM_CHAINS, CHAIN_TOKENS = 24, 48
ROOMY, TIGHT = NUM_CHAINS * 2 * 16, 64  # slots: for all there is, or so few that pages are evicted


def tokens(chain: int) -> list[int]:
    """Three chains share their first half."""
    return [chain // 3] * (CHAIN_TOKENS // 2) + [chain] * (CHAIN_TOKENS // 2)


def opened(root: Path, num_slots: int) -> tuple[KVStore, Space]:
    arena = Arena.allocate(64, STRIDES)
    disk_bytes = num_slots * (SLOT_BYTES + 520) + 64 * 4096
    config = StoreConfig(
        64, PAGE_TOKENS, disk_bytes=disk_bytes, min_free_bytes=0, durability_s=0.05
    )
    store = KVStore.open(root, config=config, arena=arena)
    return store, store.space(IDENTITY, GEOMETRY)


def write(root: Path, seed: int, num_slots: int, acknowledge: int) -> None:
    """Never returns by itself; writes a byte for each chain that is on disk."""
    rng = random.Random(seed)
    store, space = opened(root, num_slots)
    while True:
        chain = rng.randrange(NUM_CHAINS)
        fill(space, tokens(chain))
        if rng.random() < 0.5 and store.flush(durable=rng.random() < 0.3).result(60):
            os.write(acknowledge, bytes([chain]))


def check(root: Path, num_slots: int, must: set[int]) -> None:
    """Raises unless every page found is right and all of `must` is there."""
    store, space = opened(root, num_slots)
    for chain in range(NUM_CHAINS):
        found = loaded(space, space.chain(tokens(chain)), 60)
        assert found == CHAIN_TOKENS or chain not in must, f"chain {chain} lost: {found}"
    store.check_integrity()
    stats = store.stats()
    assert stats.open_leases == stats.open_writers == stats.reserved_pages == 0
    assert stats.disk.counters.io_errors == 0
    used = sum(path.stat().st_size for path in root.glob("*.kv?"))
    assert used <= stats.disk.budget_bytes, (used, stats.disk.budget_bytes)
    store.close()
    if num_slots == ROOMY:  # else a slot may be half rewritten under its old record: a miss
        assert verify(root).bad == ()


def forked(call: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def cycle(root: Path, rng: random.Random, num_slots: int, must: set[int]) -> int:
    """Runs one cycle; returns the number of chains acknowledged."""
    reader, writer = os.pipe()
    seeds = [rng.randrange(1 << 30) for _ in range(2)]
    children = [forked(lambda seed=seed: write(root, seed, num_slots, writer)) for seed in seeds]
    os.close(writer)
    select.select([reader], [], [], 20)  # until something is on disk
    time.sleep(rng.uniform(0.005, 0.25))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    acknowledged = set()
    while chains := os.read(reader, 4096):
        acknowledged |= set(chains)
    os.close(reader)
    if num_slots == ROOMY:
        must |= acknowledged
    checker = forked(lambda: check(root, num_slots, must))
    if os.waitpid(checker, 0)[1]:
        raise SystemExit("the check failed, for the reason above")
    return len(acknowledged)


def torment(root: Path, seed: int, num_slots: int, cycles: int) -> int:
    """Runs cycles on one root; returns the number of chains acknowledged in all."""
    rng = random.Random(seed)
    must: set[int] = set()
    return sum(cycle(root, rng, num_slots, must) for _ in range(cycles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # Both kinds at once: a cycle is waiting more than working.
    kinds = (
        ("roomy", ROOMY, given.cycles - given.cycles // 2),
        ("tight", TIGHT, given.cycles // 2),
    )
    reader, writer = os.pipe()

    def run(kind: str, num_slots: int, cycles: int) -> None:
        total = torment(given.root / kind, given.seed, num_slots, cycles)
        os.write(writer, total.to_bytes(8, "little"))

    children = [forked(lambda kind=kind: run(*kind)) for kind in kinds]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        raise SystemExit("a cycle failed, for the reason above")
    total = sum(int.from_bytes(os.read(reader, 8), "little") for _ in kinds)
    print(f"{given.cycles} cycles, {total} chains acknowledged, none lost, no wrong page")


if __name__ == "__main__":
    main()
