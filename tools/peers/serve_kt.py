# SPDX-License-Identifier: Apache-2.0
"""kt_kernel as a child of kernels.py: `serve_kt.py FORMAT ISA`; ISA "native" means the best one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kt_kernel import Experts, MoE, ThreadPool, isa
from kt_kernel.experts import Projection
from serve import Load, serve
from shapes import FORMATS
from weights import dequantize, fp8_blocks, split_mxfp4

Array = np.ndarray[Any, Any]
PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")


class KtKernel:
    """Our kernel through its public API."""

    def __init__(self, format_name: str) -> None:
        self.format = FORMATS[format_name]
        self.layers: list[MoE] = []

    def load(self, load: Load) -> tuple[int, str]:
        """Pack the file's blocks, or their values where our format has another layout."""
        self.layers = []
        pool = ThreadPool(load.num_threads)
        distinct = [
            {name: self.arguments(getattr(expert, name)) for name in PROJECTIONS}
            for expert in load.experts
        ]
        shape = load.shape
        for _ in range(shape.num_layers):
            experts = Experts.empty(
                shape.num_experts,
                shape.hidden_size,
                shape.intermediate_size,
                gate=self.format.kernel_format,
                up=self.format.kernel_format,
                down=self.format.kernel_format,
                group_size=self.format.group_size,
            )
            if shape.biases:
                turns = [load.experts[e % len(distinct)] for e in range(shape.num_experts)]
                for i, name in enumerate(PROJECTIONS):
                    experts.put_bias(name, np.stack([expert.biases[i] for expert in turns]))

            def put(number: int, experts: Experts = experts) -> None:
                for name, arguments in distinct[number % len(distinct)].items():
                    experts.put(number, name, **arguments)

            with ThreadPoolExecutor(load.num_threads) as packers:
                list(packers.map(put, range(shape.num_experts)))
            self.layers.append(
                MoE(
                    experts,
                    top_k=shape.top_k,
                    activation=shape.activation,
                    max_tokens=load.max_tokens,
                    pool=pool,
                )
            )
        # What a call needs; pads are not read.
        size = int(shape.weights_per_expert * self.format.bits_per_weight / 8)
        return size, f"{self.format.name} on {isa.active()}"

    def arguments(self, blocks: Array) -> dict[str, Any]:
        """What `put` takes."""
        if self.format.name == "fp8":
            values = dequantize(blocks, self.format.blocks)
            return dict(zip(("weight", "scales"), fp8_blocks(values), strict=True))
        if not self.format.packed:
            return {"weight": dequantize(blocks, self.format.blocks)}
        if self.format.name == "mxfp4":
            return dict(zip(("weight", "scales"), split_mxfp4(blocks), strict=True))
        return {"weight": blocks}

    def prepare(self, hidden: Array, ids: Array, weights: Array) -> None:
        """Arrays are taken as they are."""
        self.call = hidden, ids, weights, np.empty_like(hidden)

    def compute(self, layer: int) -> None:
        """The call."""
        self.layers[layer % len(self.layers)].forward(*self.call)

    def result(self) -> Array:
        """Of the last call."""
        return self.call[3]


if __name__ == "__main__":
    if sys.argv[2] != "native":
        isa.force(sys.argv[2])
    serve(KtKernel(sys.argv[1]))
