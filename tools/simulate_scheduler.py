# SPDX-License-Identifier: Apache-2.0
"""Simulates the scheduler on a machine whose law of time is known: streams decode while a long
prompt is computed. Prints how long that takes and what the streams wait for. Computes no model.

The figures of ADR 0007 are `tools/simulate_scheduler.py`'s; its options are other machines.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kt_runtime.core import Request, SamplingParams
from kt_runtime.protocols import PageTable
from kt_runtime.scheduler import Scheduler, StepBudget, StepTimeModel, StepTimes, StepWork
from kt_runtime.scheduler import Sequence as ScheduledRequest

NUM_EXPERTS, TOP_K = 128, 8
PAGE_SIZE = 16
NUM_STREAMS, STREAM_TOKENS = 4, 256
# Streams speak for so many steps before the prompt arrives.
WARM_UP = 20


@dataclass(frozen=True)
class Machine:
    """Attributes: slowness: times what the law says; noise: the largest part by which a step is
    faster or slower than that."""

    slowness: float = 1.0
    noise: float = 0.0

    def seconds(self, work: StepWork, rng: random.Random) -> float:
        """How long a step takes here."""
        touched = NUM_EXPERTS * (1 - (1 - TOP_K / NUM_EXPERTS) ** work.num_rows)
        rows = 3e-4 * work.num_decodes + 1.2e-3 * work.num_prefill_tokens
        law = 5e-3 + rows + 4e-4 * touched + 2e-7 * work.num_attended_tokens
        return law * self.slowness * rng.uniform(1 - self.noise, 1 + self.noise)


class NoTimes:
    """StepTimes that never bound anything: a budget of tokens."""

    def seconds(self, work: StepWork) -> float:
        """None at all."""
        return 0.0

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learns nothing."""


class EndlessPages:
    """A PageAllocator and PageTable without pages to run out of."""

    page_ids: Sequence[int] = ()
    num_cached_tokens = 0
    is_loading = False
    has_loaded = True
    num_loads_ended = 0

    def settle(self) -> bool:
        """Nothing was loaded."""
        return True

    def allocate(
        self, token_ids: Sequence[int], num_tokens: int, tenant: str | None, reuse: bool
    ) -> PageTable | None:
        """Always there."""
        return self

    def grow(self, num_tokens: int) -> bool:
        """Always possible."""
        return True

    def commit(self, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Stores nothing."""

    def release(self) -> None:
        """Holds nothing."""


def probed(machine: Machine, only_start: bool = False) -> StepTimeModel:
    """What exec/probe.py would find on that machine, in all or before the first request."""
    works = [StepWork(1, 0, 1)]
    if not only_start:
        works.append(StepWork(4, 0, 4))
        works += [StepWork().with_chunk(0, n) for n in (16, 64, 256, 512)]
        works.append(StepWork().with_chunk(3840, 256))
    rng = random.Random(2)
    return StepTimeModel(NUM_EXPERTS, TOP_K, [(w, machine.seconds(w, rng)) for w in works])


def steps(
    machine: Machine, times: StepTimes, max_batch_tokens: int, max_itl_s: float, prompt_tokens: int
) -> Iterator[tuple[int, float]]:
    """Prompt tokens and seconds of each step from the prompt's arrival to its first token."""
    budget = StepBudget(
        times, max_batch_tokens=max_batch_tokens, max_itl_s=max_itl_s, page_size=PAGE_SIZE
    )
    scheduler = Scheduler(EndlessPages(), budget, max_num_seqs=NUM_STREAMS + 1)
    rng = random.Random(1)

    def arrive(arrival: int, num_tokens: int) -> ScheduledRequest:
        request = Request(f"{arrival}", (1,) * num_tokens, SamplingParams())
        sequence = ScheduledRequest(request, arrival=arrival, seed=0, max_model_len=10**9)
        scheduler.add(sequence)
        return sequence

    streams = [arrive(i, STREAM_TOKENS) for i in range(NUM_STREAMS)]
    prompt: ScheduledRequest | None = None
    spoken = 0
    while prompt is None or not prompt.num_generated_tokens:
        step = scheduler.schedule()
        seconds = machine.seconds(step.work, rng)
        times.observe(step.work, seconds)
        for share in step.shares:
            completes = share.completes
            share.sequence.num_computed_tokens += share.num_new_tokens
            if completes:
                share.sequence.token_ids.append(0)
        if prompt is not None:
            yield step.work.num_prefill_tokens, seconds
        spoken += all(stream.num_generated_tokens for stream in streams)
        if spoken == WARM_UP and prompt is None:
            prompt = arrive(NUM_STREAMS, prompt_tokens)


def main() -> None:
    """Prints a line per budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=8192)
    parser.add_argument("--max-itl-ms", type=float, nargs="+", default=[150.0, 600.0])
    parser.add_argument("--noise", type=float, default=0.1, help="of the noisy machine")
    args = parser.parse_args()
    here, noisy = Machine(), Machine(noise=args.noise)
    cases: list[tuple[str, Machine, StepTimes, int, float]] = [
        (f"{n} tokens", here, NoTimes(), n + NUM_STREAMS, 1.0) for n in (508, 64, 16)
    ]
    for limit in args.max_itl_ms:
        name, seconds = f"{limit:g} ms", limit / 1000
        cases += [
            (name, here, probed(here), 512, seconds),
            (f"{name}, noise", noisy, probed(noisy), 512, seconds),
            (f"{name}, before it idled", here, probed(here, only_start=True), 512, seconds),
            (f"{name}, probed twice as fast", Machine(2.0), probed(here), 512, seconds),
            (f"{name}, probed half as fast", Machine(0.5), probed(here), 512, seconds),
        ]
    print(f"{'budget':32s} {'prompt':>8s} {'steps':>6s} {'p99':>8s}  first and last full chunks")
    for name, machine, times, max_batch_tokens, max_itl_s in cases:
        taken = list(steps(machine, times, max_batch_tokens, max_itl_s, args.prompt_tokens))
        waits = sorted(seconds for _, seconds in taken)
        chunks = [size for size, _ in taken if size][:-1] or [taken[-1][0]]
        p99 = waits[int(0.99 * (len(waits) - 1))]
        print(
            f"{name:32s} {sum(waits):6.1f} s {len(taken):6d} {p99 * 1e3:5.0f} ms"
            f"  {chunks[0]} … {chunks[-1]}"
        )


if __name__ == "__main__":
    main()
