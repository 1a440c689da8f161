# SPDX-License-Identifier: Apache-2.0
"""Batches against the definition of each field, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.core import Request, SamplingParams
from kt_runtime.exec.batch import build_batch, num_logits_rows, set_newest
from kt_runtime.protocols import Batch
from kt_runtime.scheduler import ScheduledSequence, Sequence


@dataclass
class Table:
    page_ids: list[int]
    num_cached_tokens: int = 0


def share(prompt, computed, new, page_ids, **settings) -> ScheduledSequence:
    seq = Sequence(Request("r", tuple(prompt), **settings), arrival=0, seed=0, max_model_len=999)
    seq.num_computed_tokens = computed
    seq.page_table = Table(page_ids)
    return ScheduledSequence(seq, new)


def test_a_decode_a_chunk_and_a_whole_prompt():
    step = [
        share([10, 11, 12, 13, 14], 4, 1, [7, 3, 9]),
        share([20, 21, 22, 23], 1, 2, [4, 2]),
        share([30, 31, 32], 0, 3, [0, 1], return_logits=True),
    ]
    batch = build_batch(step, page_size=2)
    assert batch.input_ids.tolist() == [14, 21, 22, 30, 31, 32]
    assert batch.positions.tolist() == [4, 1, 2, 0, 1, 2]
    assert batch.slot_mapping.tolist() == [18, 9, 4, 0, 1, 2]
    assert batch.block_table.tolist() == [[7, 3, 9], [4, 2, 0], [0, 1, 0]]
    assert batch.seq_lens.tolist() == [5, 3, 3]
    assert batch.cu_seqlens_q.tolist() == [0, 1, 3, 6]
    assert batch.logits_rows.tolist() == [0, 3, 4, 5]
    assert [num_logits_rows(s) for s in step] == [1, 0, 3]


def test_a_prompt_that_is_computed_again_wants_no_more_logits_than_it_needs():
    sampling = SamplingParams(prompt_logprobs=1)
    first = share([10, 11, 12, 13], 0, 3, [7, 3], sampling=sampling)
    assert num_logits_rows(first) == 3
    first.sequence.token_ids.extend([14, 15])  # it said two tokens and was preempted
    assert num_logits_rows(first) == 0
    assert num_logits_rows(ScheduledSequence(first.sequence, 6)) == 1


def test_decodes_built_ahead_are_those_built_when_their_tokens_are_known():
    # The second one starts a page with the token that is not known yet.
    step = [share([10, 11, 12], 2, 1, [7, 3]), share([20, 21], 1, 1, [4, 9])]
    ahead = build_batch(step, page_size=2, ahead=1)
    for s, token in zip(step, (13, 22), strict=True):
        s.sequence.num_computed_tokens += 1
        s.sequence.token_ids.append(token)
    set_newest(ahead, step)
    expected = build_batch(step, page_size=2)
    assert expected.input_ids.tolist() == [13, 22]
    for name in Batch.__slots__:
        assert getattr(ahead, name).tolist() == getattr(expected, name).tolist()


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 19), st.integers(1, 20), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 2, 5, 16]),
)
def test_every_row_stands_where_its_token_belongs(drawn, page_size):
    step = []
    next_page = 3
    for num_tokens, computed, new, return_logits in drawn:
        computed = min(computed, num_tokens - 1)
        new = min(new, num_tokens - computed)
        pages = list(range(next_page, next_page + -(-num_tokens // page_size)))[::-1]
        next_page += len(pages)
        prompt = range(100, 100 + num_tokens)
        step.append(share(prompt, computed, new, pages, return_logits=return_logits))
    batch = build_batch(step, page_size)
    row = 0
    wanted = []
    for s, (seq, new) in enumerate(step):
        assert batch.cu_seqlens_q[s] == row
        assert batch.seq_lens[s] == seq.num_computed_tokens + new
        for position in range(seq.num_computed_tokens, seq.num_computed_tokens + new):
            assert batch.input_ids[row] == seq.token_ids[position]
            assert batch.positions[row] == position
            page = seq.page_table.page_ids[position // page_size]
            assert batch.block_table[s, position // page_size] == page
            assert batch.slot_mapping[row] == page * page_size + position % page_size
            if seq.request.return_logits or position == seq.num_tokens - 1:
                wanted.append(row)
            row += 1
    assert batch.cu_seqlens_q[len(step)] == row == len(batch.input_ids)
    assert batch.logits_rows.tolist() == wanted
    for tensor in (batch.input_ids, batch.positions, batch.slot_mapping, batch.block_table):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
