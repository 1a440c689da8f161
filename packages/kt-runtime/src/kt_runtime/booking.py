# SPDX-License-Identifier: Apache-2.0
"""From a computed step to its events. Neither schedules nor computes.

In two halves, because the next step needs no more than the first: `choose` finds which token each
sequence got and who has ended; `book`, which may run while the next step computes, publishes
pages, finds log probabilities and makes the events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from kt_runtime.core import FinishReason, TokenEvent
from kt_runtime.counters import Counters
from kt_runtime.exec.batch import num_logits_rows
from kt_runtime.exec.outputs import Floats, RequestOutputs
from kt_runtime.exec.sampler import NonFiniteLogitsError
from kt_runtime.scheduler import ScheduledSequence, Scheduler, Sequence, Step


class _Outcome(NamedTuple):
    """What a step made of a sequence.

    Attributes:
        sequence: whose.
        token_id, reason, error: those of its event; there is none without token and reason.
        row: (vocab_size,) of the token, where log probabilities are asked for.
    """

    sequence: Sequence
    token_id: int | None = None
    reason: FinishReason | None = None
    error: str | None = None
    row: Floats | None = None


class Booking:
    """Books steps and ends requests. One thread at a time.

    Args:
        scheduler: forgets what ended.
        outputs: samples.
        counters: counts.
        eos_token_ids: the model's.
        ended: called with the id of each request when its last event is made.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        outputs: RequestOutputs,
        counters: Counters,
        eos_token_ids: Collection[int],
        ended: Callable[[str], None],
    ) -> None:
        self._scheduler = scheduler
        self._outputs = outputs
        self._counters = counters
        self._eos_token_ids = eos_token_ids
        self._ended = ended
        self._outcomes: deque[_Outcome] = deque()  # not booked yet

    def choose(self, step: Step, logits: Floats, fault: Callable[[int, int], str | None]) -> None:
        """Advance the sequences of a step. What goes wrong with one of them ends that one.

        Args:
            step: what was computed.
            logits: (R, vocab_size), the rows that its shares want; not read afterwards.
            fault: what broke rows start … end - 1 of the batch, if anything did.
        """
        row = batch_row = 0
        for scheduled in step.shares:
            end_row = row + num_logits_rows(scheduled)
            end_batch_row = batch_row + scheduled.num_new_tokens
            if not scheduled.sequence.ended:  # else it ended while it was computed
                try:
                    broken = fault(batch_row, end_batch_row)
                    self._advance(scheduled, logits[row:end_row], broken)
                except Exception as error:  # out of memory, say
                    self.fail(scheduled.sequence, error)
            row, batch_row = end_row, end_batch_row

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End a request because of an exception."""
        self.finish(sequence, "error", _describe(error))

    def finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """End a request. Its pages are free at once; `book` makes its last event. Nothing happens
        to one that has ended."""
        if not sequence.ended:
            self._let_go(sequence)
            self._outcomes.append(_Outcome(sequence, None, reason, error))

    def book(self) -> list[TokenEvent]:
        """The events of all that was chosen and finished since the last call, in that order."""
        events = []
        while self._outcomes:
            outcome = self._outcomes.popleft()
            try:
                event = self._event(outcome)
            except Exception as error:  # out of memory, say
                sequence = outcome.sequence
                self._let_go(sequence)
                # It ends once, whatever else was to be said of it.
                self._outcomes = deque(o for o in self._outcomes if o.sequence is not sequence)
                event = self._event(_Outcome(sequence, None, "error", _describe(error)))
            if event is not None:
                events.append(event)
        return events

    def _advance(self, scheduled: ScheduledSequence, logits: Floats, fault: str | None) -> None:
        sequence, completes = scheduled.sequence, scheduled.completes
        request, start = sequence.request, sequence.num_computed_tokens
        if fault is not None:
            self.finish(sequence, "error", fault)
            return
        sequence.num_computed_tokens += scheduled.num_new_tokens
        outcome = _Outcome(sequence, reason="length" if completes else None)
        if request.return_logits:
            self._outputs.keep_logits(sequence, logits)
        else:
            try:
                self._outputs.score_prompt(sequence, logits, start)
                if completes and request.generates:
                    outcome = self._sample(sequence, logits[-1])
            except NonFiniteLogitsError as error:
                self.finish(sequence, "error", str(error))
                return
        if outcome.reason is not None:
            self._publish(sequence)
            self._let_go(sequence)
        self._outcomes.append(outcome)

    def _sample(self, sequence: Sequence, logits: Floats) -> _Outcome:
        token_id = self._outputs.sample(sequence, logits)
        sequence.token_ids.append(token_id)
        reason = sequence.finish_reason(self._eos_token_ids)
        # A copy, because the next step may write over the row.
        row = None if sequence.request.sampling.logprobs is None else logits.copy()
        return _Outcome(sequence, token_id, reason, None, row)

    def _publish(self, sequence: Sequence) -> None:
        """Offer its full pages to others. Not before its logits were seen: pages behind broken ones
        must not be offered."""
        if sequence.page_table is not None:  # it runs
            sequence.page_table.commit(sequence.token_ids, sequence.num_computed_tokens)

    def _let_go(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._scheduler.remove(sequence)

    def _event(self, outcome: _Outcome) -> TokenEvent | None:
        sequence, token_id, reason, error, row = outcome
        request = sequence.request
        self._publish(sequence)
        if token_id is None and reason is None:
            return None
        logprobs = None
        if token_id is not None:
            if row is not None:
                logprobs = self._outputs.logprobs(request, row, token_id)
            self._counters.generated()
        incomplete = reason in ("abort", "error")
        event = TokenEvent(
            request_id=request.request_id,
            token_id=token_id,
            finish_reason=reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_generated_tokens=sequence.num_generated_tokens,
            error=error,
            logprobs=logprobs,
            prompt_logprobs=None if incomplete else self._outputs.prompt_logprobs(request),
        )
        if reason is not None:
            self._counters.finished(reason)
            self._outputs.end(request.request_id, complete=not incomplete)
            self._ended(request.request_id)
        return event


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
