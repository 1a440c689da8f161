# SPDX-License-Identifier: Apache-2.0
"""The pool: its size, its counts, and how it lives with errors, forks, other pools and the GIL."""

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kt_kernel import Linear, Stream, ThreadPool, _core, usable_cores

needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to choose from"
)


def add_once(pool: ThreadPool) -> np.ndarray:
    x, out = np.ones((4, 40000), np.float32), np.empty((4, 40000), np.float32)
    Stream(pool).add(x, x, out)
    return out


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "KT_THREADS"}  # noqa: TID251  # a child's
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


PREAMBLE = """
import os, sys, threading, time
import numpy as np
from kt_kernel import Experts, Graph, Linear, MoE, Stream, ThreadPool

def add_once(pool):
    x, out = np.ones((4, 40000), np.float32), np.empty((4, 40000), np.float32)
    Stream(pool).add(x, x, out)
    return bool((out == 2).all())

"""


def worker_ids() -> set[str]:
    """The threads of all pools of this process."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name for task in tasks if (task / "comm").read_text().startswith("kt-worker-")}


def status_of(worker: str, field: str) -> str:
    """A line of what Linux tells of a thread."""
    status = Path(f"/proc/self/task/{worker}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith(f"{field}:")).split()[1]


def cpus_of(worker: str) -> str:
    """The CPUs a thread may use, as Linux lists them: "0-3,8"."""
    return status_of(worker, "Cpus_allowed_list")


def test_size_is_the_one_asked_for():
    for count in (1, 2, 5):
        assert ThreadPool(count).num_threads == count


def test_default_size_is_what_the_process_may_use(monkeypatch):
    monkeypatch.delenv("KT_THREADS", raising=False)
    assert 1 <= ThreadPool().num_threads <= len(os.sched_getaffinity(0))


def test_default_size_follows_the_affinity():
    """An affinity mask of one core leaves one thread, whatever the machine has."""
    code = (
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(ThreadPool().num_threads)"
    )
    assert run_python(code).stdout.strip() == "1"


def test_a_pool_whose_affinity_shrinks_goes_on():
    """As `taskset -a` does it to a running process: all threads at once, to one CPU."""
    code = """
pool = ThreadPool(2)
assert add_once(pool)
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
assert all(add_once(pool) for _ in range(100))
print(ThreadPool().num_threads)
"""
    assert run_python(code).stdout.strip() == "1"


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
    core, others = max(os.sched_getaffinity(0)), worker_ids()
    pool = ThreadPool(cores=[core])
    assert pool.num_threads == 1
    assert [cpus_of(worker) for worker in worker_ids() - others] == [str(core)]
    assert (add_once(pool) == 2).all()


def test_cores_may_be_an_array():
    core = min(os.sched_getaffinity(0))  # 0 as a rule, and an array of one 0 is false
    assert ThreadPool(cores=np.array([core])).num_threads == 1


@pytest.fixture
def machine(tmp_path):
    """Makes the root of a machine with these cores, each the hyper-threads given."""

    def make(cores: list[list[int]]) -> str:
        for cpu, siblings in ((cpu, core) for core in cores for cpu in core):
            topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(",".join(map(str, siblings)) + "\n")
        return str(tmp_path)

    return make


@needs_two_cpus
def test_a_thread_for_each_core_keeps_to_its_own(machine, monkeypatch):
    monkeypatch.delenv("KT_THREADS", raising=False)
    root = machine([[cpu] for cpu in _core.allowed_cpus()])
    others = worker_ids()
    pool = _core.ThreadPool(root=root)
    bound = sorted(int(cpus_of(worker)) for worker in worker_ids() - others)
    assert bound == _core.allowed_cpus()
    assert pool.num_threads == len(bound)


@needs_two_cpus
def test_threads_are_left_to_the_system_where_cores_are_left_over_or_too_few(machine):
    root = machine([[cpu] for cpu in _core.allowed_cpus()])
    everywhere, others = cpus_of(str(threading.get_native_id())), worker_ids()
    pools = [_core.ThreadPool(n, root=root) for n in (1, len(_core.allowed_cpus()) + 1)]
    bound = [cpus_of(worker) for worker in worker_ids() - others]
    assert bound == [everywhere] * sum(pool.num_threads for pool in pools)


@needs_two_cpus
def test_on_several_memory_nodes_threads_keep_to_theirs(tmp_path):
    nodes = tmp_path / "sys/devices/system/node"
    first, *_, last = _core.allowed_cpus()
    for node, cpus in ((0, first), (1, last)):
        (nodes / f"node{node}").mkdir(parents=True)
        (nodes / f"node{node}" / "cpulist").write_text(f"{cpus}\n")
    (nodes / "online").write_text("0-1\n")
    one, others = _core.ThreadPool(1, root=str(tmp_path)), worker_ids()  # one node is enough
    assert cpus_of(max(others, key=int)) == cpus_of(str(threading.get_native_id()))
    pool = _core.ThreadPool(2 * len(_core.allowed_cpus()), root=str(tmp_path))
    bound = {cpus_of(worker) for worker in worker_ids() - others}
    assert {str(last)} <= bound
    assert not {cpus_of(str(threading.get_native_id()))} & bound
    x, out = np.ones((40, 4000), np.float32), np.empty((40, 4000), np.float32)
    for each in (one, pool):
        _core.Stream(each).add(x, x, out)
        assert (out == 2).all()


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
    """After a burst of work, all pools of this process together use less than 1 % of a CPU."""
    pool = ThreadPool()
    for _ in range(50):
        add_once(pool)
    time.sleep(0.02)  # the short spin after the last job
    before, started = time.process_time(), time.perf_counter()
    time.sleep(1)
    assert time.process_time() - before < 0.01 * (time.perf_counter() - started)


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs a core for each of two workers")
@pytest.mark.parametrize("gap", [20e-6, 120e-6], ids=["20us", "120us"])
def test_workers_stay_awake_between_calls_that_follow_each_other(gap):
    """However the calls began. Waking up takes longer than many an op."""
    gc.collect()
    before = worker_ids()
    pool = ThreadPool(2)
    workers = worker_ids() - before
    out = np.ones((1, 8), np.float32)
    stream = Stream(pool)

    def sleeps_of_a_hundred_calls() -> int:
        began = sum(int(status_of(worker, "voluntary_ctxt_switches")) for worker in workers)
        for _ in range(100):
            stream.add(out, out, out)
            until = time.perf_counter() + gap
            while time.perf_counter() < until:
                pass
        ended = sum(int(status_of(worker, "voluntary_ctxt_switches")) for worker in workers)
        return ended - began

    assert min(sleeps_of_a_hundred_calls() for _ in range(20)) < 20  # in a quiet moment


def test_who_waits_computes_a_part():
    """Waking a thread and going to sleep costs more than many an op."""
    pool = ThreadPool(1)
    add_once(pool)
    own, all_threads = time.thread_time(), time.process_time()
    for _ in range(200):
        add_once(pool)
    assert time.thread_time() - own > 0.9 * (time.process_time() - all_threads)


@pytest.fixture
def rounding_upward():
    """The calling thread's arithmetic rounds upward (FE_UPWARD of x86)."""
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetround(0x800) == 0
    yield
    libm.fesetround(0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="fesetround's numbers are x86's")
def test_results_do_not_depend_on_the_callers_arithmetic(rounding_upward):
    one, little = np.ones((64, 1000), np.float32), np.full((64, 1000), 2.0**-30, np.float32)
    assert (one + little > 1).all()  # numpy's do
    for threads in (1, 2):
        out = np.empty_like(one)
        Stream(ThreadPool(threads)).add(one, little, out)
        assert (out == 1).all()


def test_more_threads_than_cores():
    pool = ThreadPool(4 * len(os.sched_getaffinity(0)))
    assert all((add_once(pool) == 2).all() for _ in range(50))


def test_a_forked_child_is_told_to_make_its_own_pool():
    result = run_python("""
pool = ThreadPool(2)
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
""")
    assert result.returncode == 0, result.stderr


def test_a_child_forked_amid_work_is_told_too():
    """Other threads may hold any lock at the moment of the fork: the child must not wait for it."""
    result = run_python("""
pool = ThreadPool(1)
rng = np.random.default_rng(0)
gate, up, down = (rng.standard_normal((1, 512, 512), np.float32) for _ in range(3))
experts = Experts.pack(gate, up, down, format="float32", pool=pool)
moe = MoE(experts, top_k=1, max_tokens=512, pool=pool)
x, out = np.ones((512, 512), np.float32), np.empty((512, 512), np.float32)
ids, weights = np.zeros((512, 1), np.int32), np.ones((512, 1), np.float32)
graph = Graph(pool)
graph.moe(moe, x, ids, weights, np.empty_like(x))

def keep_busy(work):
    def loop():
        while True:
            work()
    threading.Thread(target=loop, daemon=True).start()

keep_busy(graph.replay)
keep_busy(lambda: moe.submit(x, ids, weights, out))  # blocks: two calls are in flight already
ticket = moe.submit(x, ids, weights, np.empty_like(x))
time.sleep(0.1)
child = os.fork()
if child == 0:
    told = []
    for call in (
        ticket.wait,
        ticket.done,
        graph.replay,
        lambda: moe.submit(x, ids, weights, out),
        lambda: moe.forward(x, ids, weights, out),
        lambda: Stream(pool).add(x, x, out),
        lambda: graph.add(x, x, out),
    ):
        try:
            call()
            told.append("nothing")
        except RuntimeError as error:
            told.append(str(error))
    ticket = None
    os.write(1, "\\n".join(told).encode())
    os._exit(0)
os.waitpid(child, 0)
""")
    told = result.stdout.splitlines()
    assert len(told) == 7, result.stderr
    told = [line for line in told if "do not survive fork" not in line]
    assert told in ([], ["nothing"] * 2)  # the ticket's call may have finished before the fork


@pytest.mark.parametrize("work", ["add_once(pool)", "stream.linear(x, linear, out)"])
def test_the_interpreter_may_end_while_daemon_threads_compute(work):
    """They never come back to Python; the process must end all the same, and quietly."""
    result = run_python(f"""
pool = ThreadPool(2)
stream, linear = Stream(pool), Linear.pack(np.ones((512, 512), np.float32), format="float32")
x, out = np.ones((64, 512), np.float32), np.empty((64, 512), np.float32)

def loop():
    while True:
        {work}

for _ in range(3):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.1)
""")
    assert (result.returncode, result.stderr) == (0, "")


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
