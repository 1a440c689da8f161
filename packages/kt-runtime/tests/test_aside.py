# SPDX-License-Identifier: Apache-2.0
"""Fork and join: both run at once, neither outlives the call, errors come back."""

from __future__ import annotations

import threading

import pytest

from kt_runtime.exec.aside import Aside

MEETING_S = 10.0


@pytest.fixture
def aside():
    aside = Aside("test-aside")
    yield aside
    aside.close()
    assert "test-aside" not in {thread.name for thread in threading.enumerate()}


def test_work_and_job_run_at_the_same_time(aside):
    meeting = threading.Barrier(2)
    threads = []

    def work() -> str:
        meeting.wait(MEETING_S)
        threads.append(threading.current_thread().name)
        return "worked"

    def job() -> None:
        meeting.wait(MEETING_S)
        threads.append(threading.current_thread().name)

    for _ in range(3):
        assert aside.during(work, job) == "worked"
    assert threads.count("test-aside") == threads.count(threading.current_thread().name) == 3


def test_it_returns_when_both_have_ended(aside):
    work_ended = threading.Event()
    order = []

    def job() -> None:
        work_ended.wait(MEETING_S)
        order.append("job")

    def work() -> None:
        order.append("work")
        work_ended.set()

    aside.during(work, job)
    assert order == ["work", "job"]


def test_errors_of_either_are_raised_and_the_next_job_runs(aside):
    def fails(error: BaseException) -> None:
        raise error

    done = []
    with pytest.raises(SystemExit, match="job"):
        aside.during(lambda: done.append("work"), lambda: fails(SystemExit("job")))
    with pytest.raises(ValueError, match="work"):
        aside.during(lambda: fails(ValueError("work")), lambda: done.append("job"))
    with pytest.raises(KeyError, match="job"):
        aside.during(lambda: fails(ValueError("work")), lambda: fails(KeyError("job")))
    assert aside.during(lambda: 3, lambda: done.append("job")) == 3
    assert done == ["work", "job", "job"]
