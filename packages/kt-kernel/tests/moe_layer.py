# SPDX-License-Identifier: Apache-2.0
"""A random MoE layer with tokens and routing, for the tests that need one."""

import numpy as np

from kt_kernel import Experts, MoE, ThreadPool

from . import reference
from .cases import MoeCase


class MoeLayer:
    """Weights scaled so that every stage has values near 1, hidden states and a routing."""

    def __init__(self, case: MoeCase, rng: np.random.Generator):
        e, h, i = case.num_experts, case.hidden_size, case.intermediate_size
        self.case = case
        self.gate = rng.standard_normal((e, i, h), np.float32) / np.float32(h**0.5)
        self.up = rng.standard_normal((e, i, h), np.float32) / np.float32(h**0.5)
        self.down = rng.standard_normal((e, h, i), np.float32) / np.float32(i**0.5)
        tokens = range(case.num_tokens)
        ids = [rng.permutation(e)[: case.top_k] for _ in tokens]
        self.hidden = rng.standard_normal((case.num_tokens, h), np.float32)
        self.topk_ids = np.array(ids, np.int32).reshape(-1, case.top_k)
        self.topk_weights = rng.random((case.num_tokens, case.top_k), np.float32)

    def pack(self, format: str, pool: ThreadPool, group_size: int = 32) -> Experts:
        return Experts.pack(
            self.gate, self.up, self.down, format=format, group_size=group_size, pool=pool
        )

    def moe(self, experts: Experts, pool: ThreadPool) -> MoE:
        return MoE(experts, top_k=self.case.top_k, max_tokens=64, pool=pool)

    def forward(self, experts: Experts, pool: ThreadPool, rows: slice = slice(None)) -> np.ndarray:
        out = np.full_like(self.hidden[rows], np.nan)
        self.moe(experts, pool).forward(
            self.hidden[rows], self.topk_ids[rows], self.topk_weights[rows], out
        )
        return out

    def expected(self, format: str, group_size: int = 32, resident=None) -> reference.Expected:
        return reference.moe(
            self.hidden,
            self.gate,
            self.up,
            self.down,
            self.topk_ids,
            self.topk_weights,
            format,
            group_size,
            resident,
        )
