# SPDX-License-Identifier: Apache-2.0
"""Builds a step's Batch from scheduled sequences. No Python per token of a chunk, only per
sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kt_runtime.protocols import Batch
from kt_runtime.scheduler import ScheduledSequence


def num_logits_rows(scheduled: ScheduledSequence) -> int:
    """Rows of this share whose logits are wanted: all of a prompt that wants them, else the last
    when sampled."""
    sequence = scheduled.sequence
    # Once there is output, the prompt's logits have been seen, even if it is computed again.
    if sequence.request.wants_prompt_logits and sequence.num_generated_tokens == 0:
        return scheduled.num_new_tokens
    return int(scheduled.completes)


def build_batch(step: Sequence[ScheduledSequence], page_size: int, ahead: int = 0) -> Batch:
    """The inputs of one step, rows in the order of `step`; logits_rows in the same order.

    Args:
        step: at least one share of at least one token each; every sequence has its page table.
        page_size: tokens per page.
        ahead: 1 for decodes whose tokens the step before them is still computing; `set_newest`
            puts them in.
    """
    num_rows = sum(share.num_new_tokens for share in step)
    longest = ahead + max(
        share.sequence.num_computed_tokens + share.num_new_tokens for share in step
    )
    input_ids, positions, slot_mapping = (np.empty(num_rows, np.int32) for _ in range(3))
    block_table = np.zeros((len(step), -(-longest // page_size)), np.int32)
    seq_lens = np.empty(len(step), np.int32)
    cu_seqlens_q = np.zeros(len(step) + 1, np.int32)
    wanted: list[int] = []
    row = 0
    for s, share in enumerate(step):
        sequence, count = share
        assert sequence.page_table is not None  # scheduled sequences hold pages
        start = sequence.num_computed_tokens + ahead
        end, end_row = start + count, row + count
        pages = sequence.page_table.page_ids[: -(-end // page_size)]
        block_table[s, : len(pages)] = pages
        if count == 1:  # a decode: numbers cost a tenth of what arrays of one element cost
            input_ids[row] = 0 if ahead else sequence.token_ids[start]
            positions[row] = start
            slot_mapping[row] = pages[-1] * page_size + start % page_size
        else:
            token_positions = np.arange(start, end, dtype=np.int32)
            input_ids[row:end_row] = sequence.token_ids[start:end]
            positions[row:end_row] = token_positions
            page_of_row = block_table[s, token_positions // page_size]
            slot_mapping[row:end_row] = page_of_row * page_size + token_positions % page_size
        seq_lens[s] = end
        cu_seqlens_q[s + 1] = end_row
        # A share wants its last rows.
        wanted += range(end_row - num_logits_rows(share), end_row)
        row = end_row
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slot_mapping),
        block_table=torch.from_numpy(block_table),
        seq_lens=torch.from_numpy(seq_lens),
        cu_seqlens_q=torch.from_numpy(cu_seqlens_q),
        logits_rows=torch.from_numpy(np.array(wanted, np.int32)),
    )


def set_newest(batch: Batch, step: Sequence[ScheduledSequence]) -> None:
    """Give decodes that were built ahead their tokens: the newest of each sequence."""
    batch.input_ids.numpy()[:] = [share.sequence.token_ids[-1] for share in step]
