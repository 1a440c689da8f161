# SPDX-License-Identifier: Apache-2.0
"""The reference system's kernel as a child of kernels.py: `serve_reference.py EXTENSION METHOD`.

Through its raw extension, which needs neither torch nor a GPU; its Python API needs both. Weights
are turned into the method's own layout here, from the blocks that all peers get.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from serve import Load, serve
from weights import dequantize, fp8_blocks, pair_nibbles, split_mxfp4

Array = np.ndarray[Any, Any]
CLASSES = {
    "LLAMAFILE": "MOE",
    "RAWINT4": "AVX2RawInt4_MOE",
    "MXFP4": "AVX2MXFP4_MOE",
    "FP8": "AVX2FP8_MOE",
    "BF16": "AVX2BF16_MOE",
}
GROUPS = {"RAWINT4": 32, "MXFP4": 32, "FP8": 128}


class Reference:
    """One MoE object of the extension per layer."""

    def __init__(self, extension: str, method: str) -> None:
        spec = importlib.util.spec_from_file_location("kt_kernel_ext", extension)
        if spec is None or spec.loader is None:
            raise ImportError(f"no extension module at {extension}")
        self.ext: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.ext)
        self.method = method
        self.layers: list[Any] = []
        self.kept: list[Any] = []  # arrays that the extension points to

    def load(self, load: Load) -> tuple[int, str]:
        """As the method's own loader configures it (m_block, group_min_len: its constants)."""
        self.layers, self.kept = [], []
        self.cpu = self.ext.CPUInfer(load.num_threads)
        size = 0
        for _ in range(load.shape.num_layers):
            config = self.config(load)
            size = self.point(config, load)
            moe = getattr(self.ext.moe, CLASSES[self.method])(config)
            order = np.arange(load.shape.num_experts, dtype=np.uint64)
            self.cpu.submit(moe.load_weights_task(order.ctypes.data))
            self.cpu.sync()
            self.layers.append(moe)
            self.kept.append(order)
        return size, f"{self.method} ({CLASSES[self.method]})"

    def config(self, load: Load) -> Any:
        """All that does not depend on the method."""
        shape = load.shape
        not_on_gpu = np.zeros(shape.num_experts, np.uint8)
        self.kept.append(not_on_gpu)
        config = self.ext.moe.MOEConfig(
            shape.num_experts,
            shape.top_k,
            shape.hidden_size,
            shape.intermediate_size,
            not_on_gpu.ctypes.data,
        )
        config.pool = self.cpu.backend_
        config.max_len = config.group_max_len = load.max_tokens
        config.m_block, config.group_min_len = 32, 10
        config.hidden_type = self.ext.kvcache.ggml_type.BF16
        return config

    def point(self, config: Any, load: Load) -> int:
        """Point the configuration to the weights; stored bytes of one expert."""
        size = 0
        for name in ("gate", "up", "down"):
            blocks = [getattr(expert, name) for expert in load.experts]
            turns = range(load.shape.num_experts)
            if self.method == "LLAMAFILE":
                whole = np.stack([blocks[e % len(blocks)] for e in turns])
                setattr(config, f"{name}_proj", whole.ctypes.data)
                kind = gguf.GGMLQuantizationType[load.blocks].value
                setattr(config, f"{name}_type", self.ext.kvcache.ggml_type(kind))
                self.kept.append(whole)
                size += blocks[0].nbytes
                continue
            distinct = [self.layout(matrix, load.blocks) for matrix in blocks]
            # Memory of its own for every expert, because some methods compute from it.
            pairs = [tuple(array.copy() for array in distinct[e % len(blocks)]) for e in turns]
            setattr(config, f"{name}_projs", [[w.ctypes.data for w, _ in pairs]])
            setattr(config, f"{name}_scales", [[s.ctypes.data if s.size else 0 for _, s in pairs]])
            self.kept.append(pairs)
            size += pairs[0][0].nbytes + pairs[0][1].nbytes
        if self.method in GROUPS:
            config.quant_config.bits = 8 if self.method == "FP8" else 4
            config.quant_config.group_size = GROUPS[self.method]
            config.quant_config.zero_point = False
        return size

    def layout(self, blocks: Array, kind: str) -> tuple[Array, Array]:
        """(values, scales) of one matrix."""
        rows = len(blocks)
        if self.method == "BF16":
            return blocks, np.empty(0)
        if self.method == "FP8":
            return fp8_blocks(dequantize(blocks, kind))
        if self.method == "MXFP4":
            values, exponents = split_mxfp4(blocks)
            scales = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
        else:
            block = blocks.reshape(rows, -1, 18)  # Q4_0: a float16 scale, 32 values
            values = pair_nibbles(block[..., 2:])
            scales = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0]
        return values, scales.astype(ml_dtypes.bfloat16)

    def prepare(self, hidden: Array, ids: Array, weights: Array) -> None:
        """bfloat16 activations, int64 ids: what its wrapper hands over."""
        self.call = (
            np.array([len(hidden)], np.int32),
            ids.astype(np.int64),
            np.ascontiguousarray(weights),
            hidden.astype(ml_dtypes.bfloat16),
            np.empty(hidden.shape, ml_dtypes.bfloat16),
        )

    def compute(self, layer: int) -> None:
        """Submit and wait."""
        count, ids, weights, hidden, out = (array.ctypes.data for array in self.call)
        moe = self.layers[layer % len(self.layers)]
        top_k = self.call[1].shape[1]
        self.cpu.submit(moe.forward_task(count, top_k, ids, weights, hidden, out, False))
        self.cpu.sync()

    def result(self) -> Array:
        """Of the last call."""
        return self.call[4].astype(np.float32)


if __name__ == "__main__":
    serve(Reference(sys.argv[1], sys.argv[2]))
