# SPDX-License-Identifier: Apache-2.0
"""Builds Batch and KV pages by hand, so that ops and models are tested without scheduler and
engine. Not a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kt_runtime.protocols import Batch, KVLayer, ModelShape


class Rope(NamedTuple):
    """protocols.RopeTable."""

    cos: Tensor
    sin: Tensor


class PagedSequences:
    """KV pages of some sequences, with page ids drawn in random order; page 0 belongs to nobody."""

    def __init__(
        self,
        shape: ModelShape,
        num_seqs: int,
        max_len: int,
        page_size: int = 4,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.page_size = page_size
        pages_each = -(-max_len // page_size)
        num_pages = 1 + num_seqs * pages_each
        order = torch.randperm(num_pages - 1, generator=torch.Generator().manual_seed(seed)) + 1
        self.block_table = order.view(num_seqs, pages_each).int()
        self.seq_lens = [0] * num_seqs
        pages = (num_pages, page_size, shape.num_kv_heads, shape.head_dim)
        # NaN shows every read of a slot that was never written.
        self.kv = [
            KVLayer(
                torch.full(pages, torch.nan, dtype=dtype), torch.full(pages, torch.nan, dtype=dtype)
            )
            for _ in range(shape.num_layers)
        ]

    def batch(
        self,
        seqs: Sequence[int],
        new_ids: Sequence[Sequence[int]],
        logits_rows: Sequence[int] | None = None,
    ) -> Batch:
        """One step that appends new_ids[i] to sequence seqs[i]."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        cu_seqlens = [0]
        for s, new in zip(seqs, new_ids, strict=True):
            for token in new:
                position = self.seq_lens[s]
                page = int(self.block_table[s, position // self.page_size])
                ids.append(token)
                positions.append(position)
                slots.append(page * self.page_size + position % self.page_size)
                self.seq_lens[s] += 1
            cu_seqlens.append(len(ids))
        return Batch(
            input_ids=_int32(ids),
            positions=_int32(positions),
            slot_mapping=_int32(slots),
            block_table=self.block_table[list(seqs)].contiguous(),
            seq_lens=_int32([self.seq_lens[s] for s in seqs]),
            cu_seqlens_q=_int32(cu_seqlens),
            logits_rows=None if logits_rows is None else _int32(logits_rows),
        )


def _int32(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
