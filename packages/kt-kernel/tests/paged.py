# SPDX-License-Identifier: Apache-2.0
"""A paged key-value cache with queries, for tests of attention; its pages are in random order."""

import copy

import numpy as np

from kt_kernel.ops import Ops

from . import reference
from .cases import AttentionCase


class PagedKv:
    """Random queries, keys and values of some sequences, stored in pages in random order."""

    def __init__(self, case: AttentionCase, rng: np.random.Generator, dtype: str = "float32"):
        lengths = [cached + rows for cached, rows in case.sequences]
        rows = [rows for _, rows in case.sequences]
        shape = (case.num_kv_heads, case.head_dim)
        self.dtype, self.scale, self.window = dtype, case.head_dim**-0.5, case.window
        self.keys = [rng.standard_normal((n, *shape), np.float32) for n in lengths]
        self.values = [rng.standard_normal((n, *shape), np.float32) for n in lengths]
        self.seq_lens = np.array(lengths, np.int32)
        self.cu_seqlens_q = np.cumsum([0, *rows]).astype(np.int32)
        self.q = rng.standard_normal((sum(rows), case.num_heads, case.head_dim), np.float32)
        self.sinks = rng.standard_normal(case.num_heads, np.float32) if case.sinks else None
        self._fill(case.page_size, rng)

    def _fill(self, page_size: int, rng: np.random.Generator) -> None:
        pages = [-(-len(keys) // page_size) for keys in self.keys]
        free = rng.permutation(sum(pages) + 3).astype(np.int32)
        # Entries behind a sequence's last page are never read: rubbish proves it.
        self.block_table = np.full((len(pages), max(pages) + 1), 2**31 - 1, np.int32)
        shape = (len(free), page_size, *self.keys[0].shape[1:])
        k_cache, v_cache = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        for s, count in enumerate(pages):
            mine, free = free[:count], free[count:]
            self.block_table[s, :count] = mine
            for cache, source in ((k_cache, self.keys[s]), (v_cache, self.values[s])):
                for i, page in enumerate(mine):
                    part = source[i * page_size : (i + 1) * page_size]
                    cache[page, : len(part)] = part
        if self.dtype == "int8":
            self.k_cache, self.k_scales = reference.quantise_heads(k_cache)
            self.v_cache, self.v_scales = reference.quantise_heads(v_cache)
            return
        self.k_scales = self.v_scales = None
        self.k_cache, self.v_cache = (
            reference.encode(cache, self.dtype) for cache in (k_cache, v_cache)
        )

    def repaged(self, page_size: int, rng: np.random.Generator) -> "PagedKv":
        """The same sequences in pages of another size and order."""
        other = copy.copy(self)
        other._fill(page_size, rng)
        return other

    def rows(self, sequence: int, begin: int, end: int) -> "PagedKv":
        """Only query rows [begin, end) of one sequence, as a chunk of its prefill."""
        other = copy.copy(self)
        first, last = self.cu_seqlens_q[sequence : sequence + 2]
        other.q = self.q[first + begin : first + end].copy()
        other.block_table = self.block_table[sequence : sequence + 1].copy()
        other.seq_lens = self.seq_lens[sequence : sequence + 1] - np.int32(last - first - end)
        other.cu_seqlens_q = np.array([0, end - begin], np.int32)
        return other

    def attend(self, ops: Ops) -> np.ndarray:
        """Run the op."""
        out = np.full_like(self.q, np.nan)
        ops.attention(
            self.q,
            self.k_cache,
            self.v_cache,
            self.block_table,
            self.seq_lens,
            self.cu_seqlens_q,
            out,
            scale=self.scale,
            window=self.window,
            sinks=self.sinks,
            k_scales=self.k_scales,
            v_scales=self.v_scales,
            dtype="bf16" if self.dtype == "bf16" else None,
        )
        return out

    def expected(self) -> reference.Expected:
        """The oracle's answer."""
        if self.dtype == "int8":
            k = self.k_cache * self.k_scales[..., None].astype(np.float64)
            v = self.v_cache * self.v_scales[..., None].astype(np.float64)
        else:
            k, v = (reference.decode(cache, self.dtype) for cache in (self.k_cache, self.v_cache))
        return reference.attention(
            self.q,
            k,
            v,
            self.block_table,
            self.seq_lens,
            self.cu_seqlens_q,
            self.scale,
            self.window,
            self.sinks,
        )
