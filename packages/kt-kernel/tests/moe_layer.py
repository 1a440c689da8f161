# SPDX-License-Identifier: Apache-2.0
"""A random MoE layer with tokens and routing, for the tests that need one."""

import numpy as np

from kt_kernel import Activation, Experts, MoE, ThreadPool
from kt_kernel.formats import FORMATS

from . import reference, reference_weights
from .cases import MoeCase
from .sources import Source, quantised

PROJECTIONS = ("gate", "up", "down")


class MoeLayer:
    """Weights scaled so that every stage has values near 1, hidden states and a routing.

    `format` is one for all projections, or a dictionary of gate, up and down, where gate may be
    None. Formats that cannot be made from floats have weights of their own.
    """

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
        self.biases: dict[str, np.ndarray] = {}
        self.activation = Activation()
        self.quantised = False  # whether formats that can be made from floats are not

    def add_biases(self, rng: np.random.Generator) -> None:
        sizes = {name: getattr(self, name).shape[:2] for name in PROJECTIONS}
        if not self.activation.gated:
            del sizes["gate"]
        self.biases = {name: rng.standard_normal(size, np.float32) for name, size in sizes.items()}

    def source(self, projection: str, expert: int, format: str, group_size: int) -> Source:
        weight = getattr(self, projection)[expert]
        if FORMATS[format].takes_floats and not self.quantised:
            return Source(weight)
        rng = np.random.default_rng((PROJECTIONS.index(projection), expert))
        return quantised(format, weight.shape, rng, group_size, weight.shape[1] ** -0.5)

    def pack(self, format: str | dict, pool: ThreadPool, group_size: int = 32) -> Experts:
        if isinstance(format, str) and FORMATS[format].takes_floats and self.activation.gated:
            weights = self.gate, self.up, self.down
            experts = Experts.pack(*weights, format=format, group_size=group_size, pool=pool)
        else:
            formats, case = self._formats(format), self.case
            sizes = case.num_experts, case.hidden_size, case.intermediate_size
            experts = Experts.empty(*sizes, **formats, group_size=group_size)
            for e in range(case.num_experts):
                for name, each in formats.items():
                    if each is not None:
                        self.source(name, e, each, group_size).put(experts, e, name)
        for name, bias in self.biases.items():
            experts.put_bias(name, bias)
        return experts

    def moe(self, experts: Experts, pool: ThreadPool) -> MoE:
        options = {"max_tokens": max(64, self.case.num_tokens), "activation": self.activation}
        return MoE(experts, top_k=self.case.top_k, pool=pool, **options)

    def forward(self, experts: Experts, pool: ThreadPool, rows: slice = slice(None)) -> np.ndarray:
        out = np.full_like(self.hidden[rows], np.nan)
        self.moe(experts, pool).forward(
            self.hidden[rows], self.topk_ids[rows], self.topk_weights[rows], out
        )
        return out

    def expected(
        self, format: str | dict, group_size: int = 32, resident: np.ndarray | None = None
    ) -> reference.Expected:
        experts = []
        for e in range(self.case.num_experts):
            stored = {
                name: each
                and reference_weights.stored(
                    self.source(name, e, each, group_size), each, group_size
                )
                for name, each in self._formats(format).items()
            }
            biases = {f"{name}_bias": bias[e] for name, bias in self.biases.items()}
            experts.append(reference.Expert(**stored, **biases))
        return reference.moe(
            self.hidden, experts, self.topk_ids, self.topk_weights, self.activation, resident
        )

    def _formats(self, format: str | dict) -> dict[str, str | None]:
        formats = format if isinstance(format, dict) else dict.fromkeys(PROJECTIONS, format)
        return formats if self.activation.gated else formats | {"gate": None}
