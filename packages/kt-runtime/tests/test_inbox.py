# SPDX-License-Identifier: Apache-2.0
"""What other threads tell the one that steps."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from kt_runtime.core import EngineClosedError, QueueFullError, Request
from kt_runtime.inbox import Inbox
from kt_runtime.scheduler.line import Line


def inbox_of(**limits) -> tuple[Inbox, Line]:
    """An inbox, and the line in which its scheduler has those who wait."""
    waiting = Line()
    scheduler = SimpleNamespace(waiting=waiting, add=waiting.add)
    settings = {"max_waiting": 10, "max_waiting_tokens": None, "max_model_len": 100} | limits
    return Inbox(scheduler, **settings), waiting


def test_requests_are_numbered_and_handed_over_once():
    inbox, waiting = inbox_of()
    for request_id in "ab":
        inbox.add(Request(request_id, (1, 2)))
    assert ("a" in inbox, "c" in inbox, len(inbox), len(waiting)) == (True, False, 2, 0)
    assert inbox.take() == []
    assert [(s.request.request_id, s.order) for s in waiting] == [("a", (0, 0)), ("b", (0, 1))]
    inbox.take()
    assert len(waiting) == 2
    with pytest.raises(ValueError, match="must be unique"):
        inbox.add(Request("a", (1,)))
    inbox.end("a")
    inbox.add(Request("a", (1,)))


def test_the_first_reason_to_end_a_request_counts():
    inbox, _ = inbox_of()
    for request_id in "ab":
        inbox.add(Request(request_id, (1,)))
    inbox.abort("a", "stop")
    inbox.abort("unknown", "stop")
    inbox.close("enough")
    inbox.close("and more")
    assert [(s.request.request_id, reason) for s, reason in inbox.take()] == [
        ("a", "stop"),
        ("b", "abort"),
    ]
    assert inbox.take() == []
    assert inbox.closed_reason == "enough"
    with pytest.raises(EngineClosedError, match="enough"):
        inbox.add(Request("c", (1,)))


def test_an_abort_of_who_has_ended_meanwhile_is_forgotten():
    inbox, _ = inbox_of()
    inbox.add(Request("a", (1,)))
    inbox.abort("a", "abort")
    inbox.end("a")
    assert inbox.take() == []


def test_arrivals_that_nobody_took_yet_wait_too():
    inbox, _ = inbox_of(max_waiting=2, max_waiting_tokens=5)
    inbox.add(Request("long", tuple(range(9))))
    with pytest.raises(QueueFullError, match="5 prompt tokens"):
        inbox.add(Request("a", (1,)))
    inbox, _ = inbox_of(max_waiting=2)
    for request_id in "ab":
        inbox.add(Request(request_id, (1,)))
    inbox.take()
    with pytest.raises(QueueFullError, match="at most 2 requests"):
        inbox.add(Request("c", (1,)))


@pytest.mark.parametrize("news", [lambda i: i.add(Request("a", (1,))), lambda i: i.close("now")])
def test_waiting_ends_with_a_request_or_the_end(news):
    inbox, _ = inbox_of()
    assert inbox.wait(0.001) is False
    threading.Timer(0.01, news, [inbox]).start()
    assert inbox.wait(10) is True


def test_news_that_came_since_it_was_asked_last_is_not_waited_for():
    inbox, _ = inbox_of()
    inbox.wake()
    began = time.monotonic()
    inbox.wait_for_news(10)
    inbox.take()
    inbox.wait_for_news(0.01)  # in vain
    threading.Timer(0.01, inbox.wake).start()
    inbox.wait_for_news(10)
    inbox.close("now")
    inbox.take()
    inbox.wait_for_news(10)
    assert time.monotonic() - began < 5
