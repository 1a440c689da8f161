# SPDX-License-Identifier: Apache-2.0
"""From a computed step to its events: each sequence advances, publishes its full pages, and goes on
or ends. Neither schedules nor computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kt_runtime.core import FinishReason, TokenEvent, TokenLogprobs
from kt_runtime.counters import Counters
from kt_runtime.exec.batch import num_logits_rows
from kt_runtime.exec.outputs import Floats, RequestOutputs
from kt_runtime.exec.sampler import NonFiniteLogitsError
from kt_runtime.scheduler import ScheduledSequence, Scheduler, Sequence, Step


class Booking:
    """Books steps and ends requests. The stepping thread's.

    Args:
        scheduler: forgets what ended.
        outputs: samples.
        counters: counts.
        eos_token_ids: the model's.
        ended: called with the id of each request that ended, once.
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

    def book(
        self, step: Step, logits: Floats, fault: Callable[[int, int], str | None]
    ) -> list[TokenEvent]:
        """The events of a step, in its order. What goes wrong with one request ends that one.

        Args:
            step: what was computed.
            logits: (R, vocab_size), the rows that its shares want.
            fault: what broke rows start … end - 1 of the batch, if anything did.
        """
        events = []
        row = batch_row = 0
        for scheduled in step.shares:
            end_row = row + num_logits_rows(scheduled)
            end_batch_row = batch_row + scheduled.num_new_tokens
            try:
                event = self._advance(
                    scheduled, logits[row:end_row], fault(batch_row, end_batch_row)
                )
            except Exception as error:  # out of memory, say
                event = self.fail(scheduled.sequence, error)
            row, batch_row = end_row, end_batch_row
            if event is not None:
                events.append(event)
        self._counters.computed(step)
        return events

    def fail(self, sequence: Sequence, error: Exception) -> TokenEvent:
        """End a request because of an exception."""
        return self.finish(sequence, "error", error=f"{type(error).__name__}: {error}")

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_id: int | None = None,
        error: str | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> TokenEvent:
        """End a request: its pages are free, and this is its last event."""
        request_id = sequence.request.request_id
        self._scheduler.remove(sequence)
        self._counters.finished(reason)
        event = self._event(sequence, token_id, reason, error, logprobs)
        self._outputs.end(request_id, complete=reason not in ("abort", "error"))
        self._ended(request_id)
        return event

    def _advance(
        self, scheduled: ScheduledSequence, logits: Floats, fault: str | None
    ) -> TokenEvent | None:
        """Book what was computed; sample if the sequence is complete."""
        sequence = scheduled.sequence
        if fault is not None:
            return self.finish(sequence, "error", error=fault)
        completes = scheduled.completes
        start = sequence.num_computed_tokens
        sequence.num_computed_tokens += scheduled.num_new_tokens
        if sequence.request.return_logits:
            self._outputs.keep_logits(sequence, logits)
            return self.finish(sequence, "length") if completes else None
        token_id = logprobs = None
        try:
            self._outputs.score_prompt(sequence, logits, start)
            if completes and sequence.request.generates:
                token_id, logprobs = self._outputs.sample(sequence, logits[-1])
        except NonFiniteLogitsError as error:
            return self.finish(sequence, "error", error=str(error))
        # Only now: pages behind broken logits must not be offered to others.
        assert sequence.page_table is not None
        sequence.page_table.commit(sequence.token_ids, sequence.num_computed_tokens)
        if not completes:
            return None
        if token_id is None:
            return self.finish(sequence, "length")
        sequence.token_ids.append(token_id)
        self._counters.generated()
        reason = sequence.finish_reason(self._eos_token_ids)
        if reason is not None:
            return self.finish(sequence, reason, token_id, logprobs=logprobs)
        return self._event(sequence, token_id, None, logprobs=logprobs)

    def _event(
        self,
        sequence: Sequence,
        token_id: int | None,
        reason: FinishReason | None,
        error: str | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> TokenEvent:
        prompt_logprobs = None
        if reason not in ("abort", "error"):  # an incomplete account is none
            prompt_logprobs = self._outputs.take_prompt_logprobs(sequence.request.request_id)
        return TokenEvent(
            request_id=sequence.request.request_id,
            token_id=token_id,
            finish_reason=reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_generated_tokens=sequence.num_generated_tokens,
            error=error,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
