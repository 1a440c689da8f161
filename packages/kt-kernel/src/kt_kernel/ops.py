# SPDX-License-Identifier: Apache-2.0
"""The ops of a decode step, at once (`Stream`) or recorded (`kt_kernel.graph.Graph`).

Every op writes into an array of the caller; no op allocates. Rows are tokens. A row of a result
depends on its own token only, bit for bit, whatever the batch, the threads and the chunking.
"""

from collections.abc import Sequence
from typing import Any

from kt_kernel import _core
from kt_kernel.activation import Activation, core_arguments
from kt_kernel.arrays import KV_ELEMENTS, typed
from kt_kernel.linear import Linear
from kt_kernel.moe import MoE, call_arguments
from kt_kernel.router import Router
from kt_kernel.scalars import int32
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Ops", "Stream")


class Ops:
    """The ops that `Stream` and `Graph` share.

    Every op raises `ValueError: [op] rule; got actual` for a wrong dtype, layout, shape or index
    before it writes anything; a recorded op checks its indices at replay. Arrays that an op writes
    overlap none that it reads, except where it says that `out` may be an input. Where an op takes
    `dtype`, "bf16" says that bare uint16 arrays of the call are bfloat16 bits.
    """

    _core: _core.Stream

    def embedding(
        self,
        ids: object,
        weight: object,
        out: object,
        *,
        dtype: str | None = None,
        format: str | None = None,
    ) -> None:
        """out[t] = weight[ids[t]].

        Args:
            ids: (num_tokens,) int32 in [0, vocab_size).
            weight: (vocab_size, hidden_size) float32, bf16 or f16; or (vocab_size, bytes of a row)
                uint8, rows of blocks as a checkpoint holds them, which may be mapped from it: only
                those asked for are read.
            out: (num_tokens, hidden_size) float32. Blocks give the values that they stand for.
            dtype: "bf16" if `weight` is bare uint16 bits.
            format: of blocks: a weight format whose blocks have scales of their own, "q4_0", …
        """
        if format is None:
            weight, format = typed("embedding", "weight", weight, dtype)
        self._core.embedding(ids, weight, format, out)

    def rms_norm(self, x: object, weight: object, out: object, *, eps: float) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight by rows (Zhang and Sennrich, 2019).

        Args:
            x: (num_tokens, hidden_size), or (num_tokens, num_heads, head_dim) for one norm per
                head; float32.
            weight: (hidden_size,) or (head_dim,) float32.
            out: like `x`; may be `x`.
            eps: added to the mean square.
        """
        self._core.rms_norm(x, weight, eps, out)

    def linear(
        self,
        x: object,
        linear: Linear | Sequence[Linear],
        out: Any,
        *,
        accumulate: bool = False,
    ) -> None:
        """out (+)= x @ weight.T + bias, with the arithmetic of the weight's format.

        Args:
            x: (num_tokens, in_features) float32.
            linear: the packed weight, or several of equal in_features, as those of q, k and v:
                faster than one after the other, with the same results.
            out: (num_tokens, out_features) float32; as many as `linear`.
            accumulate: add to `out` (a residual) instead of overwriting it.
        """
        if isinstance(linear, Linear):
            linear, out = (linear,), (out,)
        self._core.linear(x, [each._core for each in linear], out, accumulate)

    def rope_write_kv(
        self,
        q: object,
        k: object,
        v: object,
        cos: object,
        sin: object,
        positions: object,
        slot_mapping: object,
        k_cache: object,
        v_cache: object,
        *,
        k_scales: object | None = None,
        v_scales: object | None = None,
        dtype: str | None = None,
    ) -> None:
        """Rotate q in place; rotate k and store it with v in the paged cache.

        The first 2 * (rotary_dim / 2) elements of each head turn in pairs (i, i + rotary_dim / 2)
        (Su et al., 2021, in the half-split order of Hugging Face checkpoints).

        Args:
            q: (num_tokens, num_heads, head_dim) float32, changed.
            k: (num_tokens, num_kv_heads, head_dim) float32, unchanged.
            v: as `k`.
            cos: (max_positions, rotary_dim / 2) float32; its width sets rotary_dim.
            sin: as `cos`.
            positions: (num_tokens,) int32 in [0, max_positions).
            slot_mapping: (num_tokens,) int32, page * page_size + offset; negative: not stored.
            k_cache: (num_pages, page_size, num_kv_heads, head_dim) float32, bf16, f16 or int8.
                int8 holds round(x * 127 / absmax) of each head of each token, rotated.
            v_cache: as `k_cache`.
            k_scales: (num_pages, page_size, num_kv_heads) float32, written: absmax / 127 of each
                head, NaN if one of its elements is not finite. With int8 caches only.
            v_scales: as `k_scales`.
            dtype: "bf16" if the caches are bare uint16 bits.
        """
        k_cache, v_cache, kv_dtype = _caches("rope_write_kv", k_cache, v_cache, dtype)
        self._core.rope_write_kv(
            q,
            k,
            v,
            cos,
            sin,
            positions,
            slot_mapping,
            k_cache,
            v_cache,
            kv_dtype,
            k_scales,
            v_scales,
        )

    def attention(
        self,
        q: object,
        k_cache: object,
        v_cache: object,
        block_table: object,
        seq_lens: object,
        cu_seqlens_q: object,
        out: object,
        *,
        scale: float,
        window: int = 0,
        sinks: object | None = None,
        k_scales: object | None = None,
        v_scales: object | None = None,
        dtype: str | None = None,
    ) -> None:
        """Causal grouped-query attention over the paged cache, for any mix of prefill and decode.

        Query rows cu_seqlens_q[s] .. cu_seqlens_q[s + 1] belong to sequence s and are the last of
        its seq_lens[s] tokens. The row at position p sees the keys at p - window < j <= p, and its
        cost and pages are those of these keys (an online softmax over blocks of keys: Dao et al.,
        2022). Few rows over many keys share the keys among the workers.

        Args:
            q: (num_tokens, num_heads, head_dim) float32, rotated.
            k_cache: (num_pages, page_size, num_kv_heads, head_dim) float32, bf16, f16 or int8.
            v_cache: as `k_cache`.
            block_table: (num_seqs, max_pages) int32 page ids of each sequence, in order. Entries
                before every row's window are not read.
            seq_lens: (num_seqs,) int32, tokens in the cache including those of this call.
            cu_seqlens_q: (num_seqs + 1,) int32, first row of each sequence, then the end.
            out: (num_tokens, num_heads, head_dim) float32.
            scale: factor on the scores, usually head_dim ** -0.5.
            window: keys that a row sees, itself included; 0: all up to its position.
            sinks: (num_heads,) float32, one more score of each head whose value is nothing (Xiao
                et al., 2023, https://arxiv.org/abs/2309.17453, as learned in gpt-oss), or None.
            k_scales: (num_pages, page_size, num_kv_heads) float32 factors of the heads of an int8
                cache; None with others.
            v_scales: as `k_scales`.
            dtype: "bf16" if the caches are bare uint16 bits.
        """
        k_cache, v_cache, kv_dtype = _caches("attention", k_cache, v_cache, dtype)
        self._core.attention(
            q,
            k_cache,
            v_cache,
            kv_dtype,
            block_table,
            seq_lens,
            cu_seqlens_q,
            scale,
            out,
            int32("attention", "window", window),
            sinks,
            k_scales,
            v_scales,
        )

    def activate(
        self,
        gate: object | None,
        up: object,
        out: object,
        *,
        activation: Activation | str = "silu",
    ) -> None:
        """out = activation(gate, up), elementwise.

        Args:
            gate: (num_tokens, intermediate_size) float32; None for an activation without a gate.
            up: as `gate`.
            out: as `gate`; may be `gate` or `up`.
            activation: an `Activation`, or the name of one that needs no numbers.
        """
        self._core.activate(gate, up, out, *core_arguments(activation))

    def add(self, x: object, y: object, out: object) -> None:
        """out = x + y, elementwise; (num_tokens, columns) float32. `out` may be either."""
        self._core.add(x, y, out)

    def route(
        self,
        logits: object,
        topk_ids: object,
        topk_weights: object,
        router: Router,
        *,
        bias: object | None = None,
        input_ids: object | None = None,
        hash_table: object | None = None,
    ) -> None:
        """Choose the experts of each token and their weights, as `Router` says.

        A row with a NaN gets NaN weights and valid ids.

        Args:
            logits: (num_tokens, num_experts) float32, including the bias of a router layer that
                has one; at most 1024 experts.
            topk_ids: (num_tokens, top_k) int32, written: best first, equal values lower id first,
                -1 in a graph's padding rows.
            topk_weights: (num_tokens, top_k) float32, written; 0 in a graph's padding rows.
            router: the rule.
            bias: (num_experts,) float32, added to what experts are selected on and not to their
                weights (`e_score_correction_bias`), or None. Not for "hash".
            input_ids: (num_tokens,) int32 in [0, vocab_size), for "hash" only.
            hash_table: (vocab_size, top_k) int32 in [0, num_experts): the experts of each token
                (`tid2eid`), for "hash" only.
        """
        self._core.route(logits, topk_ids, topk_weights, router.core(), bias, input_ids, hash_table)

    def moe(
        self,
        moe: MoE,
        hidden: object,
        topk_ids: object,
        topk_weights: object,
        out: object,
        *,
        accumulate: bool = False,
        dtype: str | None = None,
    ) -> None:
        """One call of a MoE layer as an op; arguments as `MoE.forward`."""
        arguments = call_arguments("moe", hidden, topk_ids, topk_weights, out, dtype)
        self._core.moe(moe._core, *arguments, accumulate)


class Stream(Ops):
    """Runs each op on the pool and returns when it is done. Releases the GIL. Thread-safe."""

    def __init__(self, pool: ThreadPool) -> None:
        self._core = _core.Stream(pool._core)


def _caches(
    op: str, k_cache: object, v_cache: object, dtype: str | None
) -> tuple[object, object, str]:
    k, k_dtype = typed(op, "k_cache", k_cache, dtype, KV_ELEMENTS)
    v, v_dtype = typed(op, "v_cache", v_cache, dtype, KV_ELEMENTS)
    if v_dtype != k_dtype:
        raise ValueError(f"[{op}] v_cache must be {k_dtype} as k_cache; got {v_dtype}")
    return k, v, k_dtype
