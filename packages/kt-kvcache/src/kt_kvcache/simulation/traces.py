# SPDX-License-Identifier: Apache-2.0
"""Seeded traces of requests as engines see them; the same seed gives the same trace. No store.

A block is an integer that stands for the tokens of one page: equal prefixes of blocks are equal
prefixes of tokens. Sessions of one kind run beside each other, in a time that only orders them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random

MINUTE, HOUR = 60.0, 3600.0  # the unit of time is a second


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a model.

    Attributes:
        prompt: blocks given.
        answer: blocks computed after them; a later prompt may go on from here.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


Session = Iterator[tuple[float, Request]]  # each request with the seconds since the one before it


class Source:
    """Randomness and blocks nobody has used yet."""

    def __init__(self, seed: int) -> None:
        """Seeds it."""
        self.random = Random(seed)
        self._blocks = count()

    def blocks(self, n: int) -> tuple[int, ...]:
        """Returns `n` new blocks."""
        return tuple(next(self._blocks) for _ in range(n))

    def about(self, mean: float) -> int:
        """Returns an integer >= 1 around a mean > 1, mostly less, sometimes several times that."""
        return 1 + int(self.random.expovariate(1 / (mean - 0.5)))

    def popular(self, items: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Chooses item i with a weight of 1/(i + 1): Zipf, as the use of documents has."""
        weights = [1 / (i + 1) for i in range(len(items))]
        return self.random.choices(items, weights)[0]


def conversations(seed: int, num_requests: int) -> list[Request]:
    """Chats: a system prompt of one of 8 applications, then turns, minutes or hours apart.

    Half of the chats end after their first answer; the others go on for 6 turns on average.
    """
    source = Source(seed)
    systems = [source.blocks(source.about(6)) for _ in range(8)]
    return _requests(source, 20.0, lambda: _conversation(source, systems), num_requests)


def agents(seed: int, num_requests: int) -> list[Request]:
    """Tasks of 5 agents: a long prompt with tools, then a loop of short steps, seconds apart.

    A third of the tasks send out helpers that start from what the task knows so far.
    """
    source = Source(seed)
    systems = [source.blocks(30 + source.about(30)) for _ in range(5)]
    return _requests(source, 90.0, lambda: _task(source, systems), num_requests)


def retrieval(seed: int, num_requests: int) -> list[Request]:
    """Questions about one to three of 300 documents, which stand before the question."""
    source = Source(seed)
    system = source.blocks(4)
    documents = [source.blocks(4 + source.about(12)) for _ in range(300)]
    return _requests(source, 10.0, lambda: _question(source, system, documents), num_requests)


def scans(seed: int, num_requests: int) -> list[Request]:
    """Chats, and every two hours a job that reads 60 long texts once, seconds apart."""
    source = Source(seed)
    systems = [source.blocks(source.about(6)) for _ in range(8)]
    instructions = source.blocks(8)

    def session() -> Session:
        if source.random.random() < 20.0 / (2 * HOUR):
            return _scan(source, instructions)
        return _conversation(source, systems)

    return _requests(source, 20.0, session, num_requests)


def mixed(seed: int, num_requests: int) -> list[Request]:
    """All of these on one machine."""
    source = Source(seed)
    systems = [source.blocks(source.about(6)) for _ in range(8)]
    agent_systems = [source.blocks(30 + source.about(30)) for _ in range(5)]
    documents = [source.blocks(4 + source.about(12)) for _ in range(300)]
    instructions = source.blocks(8)

    def session() -> Session:
        kind = source.random.random()
        if kind < 0.55:
            return _conversation(source, systems)
        if kind < 0.65:
            return _task(source, agent_systems)
        if kind < 0.995:
            return _question(source, systems[0], documents)
        return _scan(source, instructions)

    return _requests(source, 15.0, session, num_requests)


TRACES: dict[str, Callable[[int, int], list[Request]]] = {
    trace.__name__: trace for trace in (conversations, agents, retrieval, scans, mixed)
}


def _conversation(source: Source, systems: Sequence[tuple[int, ...]]) -> Session:
    random = source.random
    blocks = source.popular(systems)
    num_turns = 1 if random.random() < 0.5 else 1 + source.about(5)
    for _ in range(num_turns):
        blocks += source.blocks(source.about(2))
        request = Request(blocks, source.blocks(source.about(5)))
        # Most answers are read and replied to; some people come back hours later.
        pause = 2 * HOUR if random.random() < 0.1 else 3 * MINUTE
        yield random.expovariate(1 / pause), request
        blocks += request.answer


def _task(source: Source, systems: Sequence[tuple[int, ...]]) -> Session:
    random = source.random
    blocks = source.popular(systems) + source.blocks(source.about(4))
    for _ in range(source.about(15)):
        request = Request(blocks, source.blocks(source.about(1.5)))
        yield random.expovariate(1 / 10), request
        if random.random() < 0.03:  # a helper reads something aside and comes back with a line
            aside = blocks + source.blocks(source.about(10))
            for _ in range(source.about(3)):
                step = Request(aside, source.blocks(source.about(1.5)))
                yield random.expovariate(1 / 10), step
                aside += step.answer + source.blocks(source.about(3))
        blocks += request.answer + source.blocks(source.about(3))  # what the tool said


def _question(
    source: Source, system: tuple[int, ...], documents: Sequence[tuple[int, ...]]
) -> Session:
    blocks = system
    for _ in range(source.random.choice((1, 1, 2, 3))):
        blocks += source.popular(documents)
    blocks += source.blocks(1)
    request = Request(blocks, source.blocks(source.about(3)))
    yield 0.0, request
    if source.random.random() < 0.2:  # asks again
        blocks += request.answer + source.blocks(1)
        pause = source.random.expovariate(1 / (2 * MINUTE))
        yield pause, Request(blocks, source.blocks(source.about(3)))


def _scan(source: Source, instructions: tuple[int, ...]) -> Session:
    for _ in range(60):
        prompt = instructions + source.blocks(20 + source.about(20))
        yield source.random.expovariate(1 / 5), Request(prompt, source.blocks(1))


def _requests(
    source: Source, mean_gap: float, session: Callable[[], Session], num_requests: int
) -> list[Request]:
    """Starts sessions at random, `mean_gap` seconds apart, and puts their requests in order."""
    requests: list[Request] = []
    # (time, serial, request that is due, session it is from); the serial decides ties.
    waiting: list[tuple[float, int, Request, Session]] = []
    serial, start = count(), 0.0
    while len(requests) < num_requests:
        while not waiting or start <= waiting[0][0]:
            _enter(waiting, start, next(serial), session())
            start += source.random.expovariate(1 / mean_gap)
        time, _, request, running = heappop(waiting)
        requests.append(request)
        _enter(waiting, time, next(serial), running)
    return requests


def _enter(
    waiting: list[tuple[float, int, Request, Session]], time: float, serial: int, session: Session
) -> None:
    due = next(session, None)
    if due is not None:
        heappush(waiting, (time + due[0], serial, due[1], session))
