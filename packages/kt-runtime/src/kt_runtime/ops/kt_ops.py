# SPDX-License-Identifier: Apache-2.0
"""KtOps: the Ops on kt_kernel, run at once or recorded in a graph. No arithmetic of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

import kt_kernel
from kt_kernel import Experts, Graph, Linear, MoE, Stream, ThreadPool
from kt_runtime.ops.pack_cache import PackCache
from kt_runtime.ops.recording import Recording
from kt_runtime.protocols import Batch, KVLayer, Projection, QuantTensor, RopeTable, Router

PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")


class KtOps:
    """protocols.Ops on kt_kernel: CPU tensors, contiguous.

    Results are bitwise independent of the batch, of chunking and of the number of threads. An
    object has no state but its settings; eager objects are thread-safe, a recorder belongs to the
    thread that records.
    """

    def __init__(
        self,
        pool: ThreadPool,
        max_tokens: int,
        group_size: int = 32,
        recording: Recording | None = None,
        pack_cache: PackCache | None = None,
    ) -> None:
        """Settings.

        Args:
            pool: the threads that pack and compute.
            max_tokens: most rows of one call of experts packed here.
            group_size: weights per scale of int8 and int4: 32, 64 or 128.
            recording: records what the ops are called with; None runs them at once.
            pack_cache: where packed experts are kept between starts, if anywhere.
        """
        self.pool = pool
        self.max_tokens = max_tokens
        self.group_size = group_size
        self._pack_cache = pack_cache
        self._recording = recording
        self._stream: Stream | Graph = Stream(pool) if recording is None else recording.graph

    def recorder(self, recording: Recording) -> KtOps:
        """Ops whose calls are recorded; weights packed by either run on both.

        Outputs are the recording's buffers: their contents are meaningful after each replay.
        """
        return KtOps(self.pool, self.max_tokens, self.group_size, recording)

    def pack_vector(self, weight: Tensor) -> Tensor:
        """A float32 copy."""
        return weight.to(torch.float32, copy=True).contiguous()

    def pack_embedding(self, weight: Tensor | QuantTensor) -> Tensor | QuantTensor:
        """The table itself, in its mapped file, say. A copy only of floats at an odd address."""
        if isinstance(weight, QuantTensor) or weight.data_ptr() % weight.element_size() == 0:
            return weight
        return weight.clone()

    def pack_linear(
        self, weight: Tensor | QuantTensor, weight_format: str, bias: Tensor | None = None
    ) -> Linear:
        """The matrix (out, in) in the kernels' layout."""
        return Linear.pack(
            _source(weight),
            format=weight_format,
            group_size=self.group_size,
            bias=None if bias is None else self.pack_vector(bias),
            pool=self.pool,
        )

    def pack_experts(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
        weight_formats: Mapping[Projection, str],
        load: Callable[[int, Projection], Tensor | QuantTensor],
        name: str = "",
    ) -> MoE:
        """All experts, as many at a time as there are threads: each loads and packs a whole one.
        Kept ones are taken as they are."""
        sizes = (num_experts, hidden_size, intermediate_size, self.group_size)
        cache = self._pack_cache
        key = "" if cache is None else cache.key(name, sizes, weight_formats)
        kept = None if cache is None else cache.load(key, self.pool)
        if kept is not None:
            return MoE(kept, top_k=top_k, max_tokens=self.max_tokens, pool=self.pool)
        experts = Experts.empty(
            num_experts,
            hidden_size,
            intermediate_size,
            gate=weight_formats["gate"],
            up=weight_formats["up"],
            down=weight_formats["down"],
            group_size=self.group_size,
        )

        def put_expert(expert: int) -> None:
            for projection in PROJECTIONS:
                experts.put(expert, projection, _source(load(expert, projection)))

        with ThreadPoolExecutor(self.pool.num_threads) as packers:
            for _ in packers.map(put_expert, range(num_experts)):
                pass  # raises what a packer raised, and lets the others go
        if cache is not None:
            cache.keep(key, experts, self.pool)
        return MoE(experts, top_k=top_k, max_tokens=self.max_tokens, pool=self.pool)

    def embedding(self, input_ids: Tensor, weight: Tensor | QuantTensor) -> Tensor:
        """Rows of the table as float32."""
        out = self._empty((len(input_ids), weight.shape[1]))
        block_format = weight.format if isinstance(weight, QuantTensor) else None
        self._stream.embedding(input_ids, _source(weight), out, format=block_format)
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

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
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


def _source(weight: Tensor | QuantTensor) -> Tensor:
    """What the kernels take: float values, or the blocks of the file."""
    return weight.blocks if isinstance(weight, QuantTensor) else weight
