# SPDX-License-Identifier: Apache-2.0
"""The pool: its size, its counts, and how it lives with errors, forks, other pools and the GIL."""

import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kt_kernel import Linear, Stream, ThreadPool


def add_once(pool: ThreadPool) -> np.ndarray:
    x, out = np.ones((4, 40000), np.float32), np.empty((4, 40000), np.float32)
    Stream(pool).add(x, x, out)
    return out


def test_size_is_the_one_asked_for():
    for count in (1, 2, 5):
        assert ThreadPool(count).num_threads == count


def test_default_size_is_what_the_process_may_use(monkeypatch):
    monkeypatch.delenv("KT_THREADS", raising=False)
    assert 1 <= ThreadPool().num_threads <= len(os.sched_getaffinity(0))


def test_default_size_follows_the_affinity():
    """An affinity mask of one core leaves one thread, whatever the machine has."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from kt_kernel import ThreadPool; print(ThreadPool().num_threads)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "KT_THREADS"}  # noqa: TID251  # a child's
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1"


def test_environment_sets_the_default_and_an_argument_wins(monkeypatch):
    monkeypatch.setenv("KT_THREADS", "3")
    assert ThreadPool().num_threads == 3
    assert ThreadPool(2).num_threads == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_bad_environment_is_a_clear_error(monkeypatch, text):
    monkeypatch.setenv("KT_THREADS", text)
    with pytest.raises(ValueError, match=rf"^\[thread_pool\] KT_THREADS must be .*got '{text}'$"):
        ThreadPool()


def test_cores_pin_and_set_the_size_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("KT_THREADS", "3")
    core = min(os.sched_getaffinity(0))
    pool = ThreadPool(cores=[core])
    assert pool.num_threads == 1
    assert (add_once(pool) == 2).all()


@pytest.mark.parametrize("arguments", [{"num_threads": 0}, {"num_threads": -1}, {"cores": [10**6]}])
def test_impossible_pools_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^\[thread_pool\] .*; got "):
        ThreadPool(**arguments)


def test_counts_ops_per_pool():
    pool, other = ThreadPool(2), ThreadPool(1)
    for _ in range(3):
        add_once(pool)
    add_once(other)
    assert pool.op_counts() == {"add": 3}
    assert other.op_counts() == {"add": 1}


def test_two_pools_work_at_the_same_time():
    pools, results = [ThreadPool(2), ThreadPool(2)], {}

    def work(index):
        results[index] = all((add_once(pools[index]) == 2).all() for _ in range(30))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: True, 1: True}
    assert [pool.op_counts()["add"] for pool in pools] == [30, 30]


def test_an_error_reaches_the_caller_and_leaves_the_pool_working():
    pool = ThreadPool(3)
    ids, weight, out = (
        np.array([9], np.int32),
        np.ones((4, 8), np.float32),
        np.ones((1, 8), np.float32),
    )
    for _ in range(20):
        with pytest.raises(ValueError, match=r"^\[embedding\] .*got 9$"):
            Stream(pool).embedding(ids, weight, out)
        assert (add_once(pool) == 2).all()


def test_idle_pools_end_quietly():
    for _ in range(50):
        ThreadPool(4)
    pool = ThreadPool(2)
    add_once(pool)
    del pool
    gc.collect()
    assert threading.active_count() < 50


def test_idle_threads_sleep():
    pool = ThreadPool(2)
    add_once(pool)
    time.sleep(0.05)  # the short spin after the last job
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_forked_child_is_told_to_make_its_own_pool():
    code = """
import os, sys
import numpy as np
from kt_kernel import Stream, ThreadPool

pool = ThreadPool(2)

def add_once(pool):
    x, out = np.ones((4, 40000), np.float32), np.empty((4, 40000), np.float32)
    Stream(pool).add(x, x, out)
    return bool((out == 2).all())

assert add_once(pool)
child = os.fork()
if child == 0:
    try:
        add_once(pool)
        os._exit(3)
    except RuntimeError as error:
        told = "fork" in str(error)
    good = add_once(ThreadPool(2))
    del pool
    os._exit(0 if told and good else 4)
status = os.waitpid(child, 0)[1]
assert add_once(pool)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_computing_releases_the_gil(rng):
    """While an op runs, so do other Python threads: with the GIL held, none could."""
    weight = rng.standard_normal((1024, 1024), np.float32)
    linear, stream = Linear.pack(weight, format="float32"), Stream(ThreadPool(1))
    x, out = rng.standard_normal((256, 1024), np.float32), np.empty((256, 1024), np.float32)

    def ran_meanwhile() -> bool:
        span, seen = [], []

        def work():
            span.append(time.perf_counter())
            stream.linear(x, linear, out)
            span.append(time.perf_counter())

        worker = threading.Thread(target=work)
        worker.start()
        while worker.is_alive():
            seen.append(time.perf_counter())
            time.sleep(0)
        begin, end = span
        margin = (end - begin) / 5  # outside the margins the worker is surely inside the op
        return any(begin + margin < t < end - margin for t in seen)

    # A loaded machine may leave this thread no core during one op, hardly during ten.
    assert any(ran_meanwhile() for _ in range(10))
