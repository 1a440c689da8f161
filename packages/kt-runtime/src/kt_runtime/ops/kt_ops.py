# SPDX-License-Identifier: Apache-2.0
"""KtOps: the Ops on kt_kernel, run at once or recorded in a graph. No arithmetic of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kt_kernel
from kt_kernel import Graph, Linear, MoE, Stream, ThreadPool
from kt_runtime.ops.packing import KtPacker, kernel_array
from kt_runtime.ops.recording import Recording
from kt_runtime.protocols import Batch, KVLayer, QuantTensor, RopeTable, Router

if TYPE_CHECKING:
    from kt_runtime.protocols import StoredArray


class KtOps(KtPacker):
    """protocols.Ops on kt_kernel: CPU tensors, contiguous.

    Results are bitwise independent of the batch, of chunking and of the number of threads. An
    object has no state but its settings; eager objects are thread-safe, a recorder belongs to the
    thread that records.

    Args:
        pool: the threads that pack and compute.
        max_tokens: most rows of one call of experts packed here.
        group_size: weights per scale of int8 and int4: 32, 64 or 128.
        recording: records what the ops are called with; None runs them at once.
    """

    def __init__(
        self,
        pool: ThreadPool,
        max_tokens: int,
        group_size: int = 32,
        recording: Recording | None = None,
    ) -> None:
        super().__init__(pool, max_tokens, group_size)
        self._recording = recording
        self._stream: Stream | Graph = Stream(pool) if recording is None else recording.graph

    def recorder(self, recording: Recording) -> KtOps:
        """Ops whose calls are recorded; weights packed by either run on both.

        Outputs are the recording's buffers: their contents are meaningful after each replay.
        """
        return KtOps(self.pool, self.max_tokens, self.group_size, recording)

    def embedding(self, input_ids: Tensor, weight: StoredArray | QuantTensor) -> Tensor:
        """Rows of the table as float32."""
        out = self._empty((len(input_ids), weight.shape[1]))
        block_format = weight.format if isinstance(weight, QuantTensor) else None
        self._stream.embedding(input_ids, kernel_array(weight), out, format=block_format)
        return out

    def linear(self, x: Tensor, weight: Linear, residual: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias in the arithmetic of the weight's format; into the residual."""
        if residual is not None:
            self._stream.linear(x, weight, residual, accumulate=True)
            return residual
        return self.linears(x, (weight,))[0]

    def linears(self, x: Tensor, weights: Sequence[Linear]) -> tuple[Tensor, ...]:
        """Several weights in one op."""
        outs = tuple(self._empty((len(x), w.out_features)) for w in weights)
        self._stream.linear(x, weights, outs)
        return outs

    def rms_norm(self, x: Tensor, weight: StoredArray, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        out = self._empty(x.shape)
        self._stream.rms_norm(x, weight, out, eps=eps)
        return out

    def rope_write_kv(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, batch: Batch, kv: KVLayer
    ) -> None:
        """Rotates q in place, writes rotated k and v to their slots."""
        self._stream.rope_write_kv(
            q, k, v, rope.cos, rope.sin, batch.positions, batch.slot_mapping, kv.k, kv.v
        )

    def attention(self, q: Tensor, kv: KVLayer, batch: Batch, scale: float) -> Tensor:
        """Causal GQA over pages."""
        out = self._empty(q.shape)
        self._stream.attention(
            q,
            kv.k,
            kv.v,
            batch.block_table,
            batch.seq_lens,
            batch.cu_seqlens_q,
            out,
            scale=scale,
        )
        return out

    def route(self, logits: Tensor, router: Router) -> tuple[Tensor, Tensor]:
        """Scores, optional groups, top-k with ties to the lower id."""
        topk_ids = self._empty((len(logits), router.top_k), torch.int32)
        topk_weights = self._empty((len(logits), router.top_k))
        self._stream.route(
            logits,
            topk_ids,
            topk_weights,
            kt_kernel.Router(
                router.score,
                num_groups=router.num_groups,
                topk_groups=router.topk_groups,
                norm="sum" if router.normalize else "none",
                scale=router.scale,
            ),
            bias=router.bias,
        )
        return topk_ids, topk_weights

    def experts(
        self, x: Tensor, experts: MoE, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor
    ) -> Tensor:
        """Weighted sum of the chosen experts, into the residual; ids below 0 are skipped."""
        self._stream.moe(experts, x, topk_ids, topk_weights, residual, accumulate=True)
        return residual

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        out = self._empty(gate.shape)
        self._stream.activate(gate, up, out)
        return out

    def eager(self, name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs); while recording, between two graphs."""
        if self._recording is None:
            return function(*inputs)
        out = self._recording.eager(name, function, inputs)
        self._stream = self._recording.graph
        return out

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """The rows asked for, in that order. Eager only: a graph's rows are all live rows."""
        if self._recording is not None:
            raise ValueError(
                "[take_rows] a recorded batch must want the logits of all rows "
                "(logits_rows=None); got a recorder"
            )
        return x[rows.long()]

    def _empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if self._recording is None:
            return torch.empty(*shape, dtype=dtype)
        return self._recording.empty(shape, dtype)
