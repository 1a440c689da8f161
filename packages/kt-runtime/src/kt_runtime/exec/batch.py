# SPDX-License-Identifier: Apache-2.0
"""Builds a step's Batch from scheduled sequences. Vectorised: no Python per token, only per
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


def build_batch(step: Sequence[ScheduledSequence], page_size: int) -> Batch:
    """The inputs of one step, rows in the order of `step`; logits_rows in the same order.

    Args:
        step: at least one share of at least one token each; every sequence has its page table.
        page_size: tokens per page.
    """
    counts = np.fromiter((s.num_new_tokens for s in step), np.int32, len(step))
    starts = np.fromiter((s.sequence.num_computed_tokens for s in step), np.int32, len(step))
    wanted = np.fromiter((num_logits_rows(s) for s in step), np.int32, len(step))
    seq_lens = starts + counts
    cu_seqlens_q = np.zeros(len(step) + 1, np.int32)
    np.cumsum(counts, out=cu_seqlens_q[1:])

    block_table = np.zeros((len(step), -(-int(seq_lens.max()) // page_size)), np.int32)
    input_ids = np.empty(cu_seqlens_q[-1], np.int32)
    for s, (sequence, _) in enumerate(step):
        assert sequence.page_table is not None  # scheduled sequences hold pages
        pages = sequence.page_table.page_ids[: -(-int(seq_lens[s]) // page_size)]
        block_table[s, : len(pages)] = pages
        row, end_row = cu_seqlens_q[s], cu_seqlens_q[s + 1]
        input_ids[row:end_row] = sequence.token_ids[starts[s] : seq_lens[s]]

    rows = np.arange(cu_seqlens_q[-1], dtype=np.int32)
    sequence_of_row = np.repeat(np.arange(len(step)), counts)
    positions = rows + (starts - cu_seqlens_q[:-1])[sequence_of_row]
    page_of_row = block_table[sequence_of_row, positions // page_size]
    slot_mapping = page_of_row * page_size + positions % page_size
    # A share wants its last `wanted` rows.
    is_wanted = rows >= (cu_seqlens_q[1:] - wanted)[sequence_of_row]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slot_mapping),
        block_table=torch.from_numpy(block_table),
        seq_lens=torch.from_numpy(seq_lens),
        cu_seqlens_q=torch.from_numpy(cu_seqlens_q),
        logits_rows=torch.from_numpy(rows[is_wanted]),
    )
