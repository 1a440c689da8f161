# SPDX-License-Identifier: Apache-2.0
"""TorchOps: the Ops in plain PyTorch float32, for any device. The oracle of KtOps, op by op; not
made for speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kt_runtime.checkpoint.gguf_blocks import dequantize
from kt_runtime.protocols import Batch, KVLayer, Projection, QuantTensor, RopeTable, Router

if TYPE_CHECKING:
    from kt_runtime.protocols import StoredArray

# Activations meet integer weights as int8 with one scale per this many elements, whatever the
# weights' group_size.
ACTIVATION_GROUP = 32
FLOAT_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def fake_quantize(weight: Tensor, bits: int, group_size: int, scale_dtype: torch.dtype) -> Tensor:
    """`weight` (…, K) as symmetric integers represent it, back in float32.

    Per group of K: the value farthest from 0 becomes the largest integer (8 bits: 127 or -127; of 4
    bits, which are too few to leave one unused, always -8: scales may be negative). The scale is
    rounded to scale_dtype *before* the integers are computed; those are rounded half to even and
    clamped. A ragged last group is filled with zeros.
    """
    lowest, highest = (-8, 7) if bits == 4 else (-127, 127)
    columns = weight.shape[-1]
    padded = functional.pad(weight.float(), (0, -columns % group_size))
    groups = padded.reshape(*padded.shape[:-1], -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    farthest = torch.where(high >= -low, high, low) if bits == 4 else -torch.maximum(high, -low)
    scale = (farthest / lowest).to(scale_dtype).float()
    integers = torch.where(scale != 0, groups / scale, 0.0).round().clamp(lowest, highest)
    restored: Tensor = (integers * scale).flatten(-2)
    return restored[..., :columns]


@dataclass(frozen=True, slots=True)
class TorchLinear:
    """weight (out, in) and bias (out,) float32, already rounded to weight_format."""

    weight: Tensor
    bias: Tensor | None
    weight_format: str


@dataclass(frozen=True, slots=True)
class TorchExperts:
    """gate, up: (E, intermediate, hidden), down: (E, hidden, intermediate); float32, rounded to
    the format of each."""

    gate: Tensor
    up: Tensor
    down: Tensor
    weight_formats: Mapping[Projection, str]


class TorchOps:
    """protocols.Ops on plain PyTorch. Holds no state but its settings; thread-safe.

    Weights are kept as the float32 values of their format; bf16 weights meet activations rounded to
    bf16, integer weights meet activations rounded to int8 per 32, as kt_kernel's default activation
    modes do.
    """

    def __init__(self, device: str = "cpu", group_size: int = 32) -> None:
        """group_size: weights per scale of int8 and int4."""
        self.device = torch.device(device)
        self.group_size = group_size

    def pack_vector(self, weight: StoredArray) -> Tensor:
        """A float32 copy."""
        return self._own(weight)

    def pack_embedding(self, weight: StoredArray | QuantTensor) -> Tensor:
        """The table's values, (vocab_size, hidden_size)."""
        return self._own(dequantize(weight) if isinstance(weight, QuantTensor) else weight)

    def pack_linear(
        self,
        weight: StoredArray | QuantTensor,
        weight_format: str,
        bias: StoredArray | None = None,
    ) -> TorchLinear:
        """The matrix (out, in), rounded to its format."""
        return TorchLinear(
            self._round_weight(weight, weight_format),
            None if bias is None else self._own(bias),
            weight_format,
        )

    def pack_experts(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
        weight_formats: Mapping[Projection, str],
        load: Callable[[int, Projection], StoredArray | QuantTensor],
        load_all: Callable[[Projection], StoredArray | None] = lambda _: None,
        name: str = "",
    ) -> TorchExperts:
        """All experts, one matrix read at a time."""
        wide = (num_experts, intermediate_size, hidden_size)
        packed: dict[Projection, Tensor] = {
            "gate": torch.empty(wide, device=self.device),
            "up": torch.empty(wide, device=self.device),
            "down": torch.empty(num_experts, hidden_size, intermediate_size, device=self.device),
        }
        for expert in range(num_experts):
            for projection, into in packed.items():
                weight = load(expert, projection)
                into[expert] = self._round_weight(weight, weight_formats[projection])
        return TorchExperts(packed["gate"], packed["up"], packed["down"], weight_formats)

    def embedding(self, input_ids: Tensor, weight: Tensor) -> Tensor:
        """Rows of the table."""
        return weight[input_ids.long()]

    def linear(self, x: Tensor, weight: TorchLinear, residual: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, with x rounded as the weight's format asks."""
        rounded = _round_activations(x, weight.weight_format)
        out = functional.linear(rounded, weight.weight, weight.bias)
        return out if residual is None else residual + out

    def linears(self, x: Tensor, weights: Sequence[TorchLinear]) -> tuple[Tensor, ...]:
        """One after the other."""
        return tuple(self.linear(x, weight) for weight in weights)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def rope_write_kv(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, batch: Batch, kv: KVLayer
    ) -> None:
        """Rotates q in place, writes rotated k and v to their slots."""
        positions = batch.positions.long().to(rope.cos.device)
        cos = rope.cos[positions].to(q.device)[:, None]
        sin = rope.sin[positions].to(q.device)[:, None]
        q.copy_(_rotate(q, cos, sin))
        written = batch.slot_mapping >= 0
        slots = batch.slot_mapping[written].long()
        kv.k.flatten(0, 1)[slots] = _rotate(k, cos, sin)[written].to(kv.k.dtype)
        kv.v.flatten(0, 1)[slots] = v[written].to(kv.v.dtype)

    def attention(self, q: Tensor, kv: KVLayer, batch: Batch, scale: float) -> Tensor:
        """Causal GQA, one sequence at a time, over its pages gathered into one tensor."""
        out = torch.zeros_like(q)
        groups = q.shape[1] // kv.k.shape[2]
        bounds = batch.cu_seqlens_q.tolist()
        for s, seq_len in enumerate(batch.seq_lens.tolist()):
            begin, end = bounds[s], bounds[s + 1]
            pages = batch.block_table[s].long()
            keys = _gather(kv.k, pages, seq_len).repeat_interleave(groups, dim=1)
            values = _gather(kv.v, pages, seq_len).repeat_interleave(groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q[begin:end], keys) * scale
            own = torch.arange(seq_len - (end - begin), seq_len, device=q.device)
            future = torch.arange(seq_len, device=q.device) > own[:, None]
            probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
            out[begin:end] = torch.einsum("hqk,khd->qhd", probabilities, values)
        return out

    def route(self, logits: Tensor, router: Router) -> tuple[Tensor, Tensor]:
        """Scores, optional groups, top-k with ties to the lower id."""
        scores = logits.softmax(-1) if router.score == "softmax" else logits.sigmoid()
        choice = scores if router.bias is None else scores + router.bias
        if router.num_groups > 1:
            grouped = choice.view(len(choice), router.num_groups, -1)
            best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
            kept = _top_ids(best, router.topk_groups)
            open_groups = torch.zeros_like(best, dtype=torch.bool).scatter_(1, kept, True)
            choice = grouped.masked_fill(~open_groups[..., None], float("-inf")).flatten(-2)
        ids = _top_ids(choice, router.top_k)
        weights = scores.gather(1, ids)
        if router.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids.int(), weights * router.scale

    def experts(
        self,
        x: Tensor,
        experts: TorchExperts,
        topk_ids: Tensor,
        topk_weights: Tensor,
        residual: Tensor,
    ) -> Tensor:
        """Weighted sum of the chosen experts, one expert at a time; ids below 0 are skipped."""
        out = torch.zeros_like(x)
        formats = experts.weight_formats
        x_gate, x_up = (_round_activations(x, formats[p]) for p in ("gate", "up"))
        for expert in torch.unique(topk_ids[topk_ids >= 0]).tolist():
            rows, slots = torch.where(topk_ids == expert)
            gate = functional.linear(x_gate[rows], experts.gate[expert])
            up = functional.linear(x_up[rows], experts.up[expert])
            hidden = _round_activations(self.swiglu(gate, up), formats["down"])
            y = functional.linear(hidden, experts.down[expert])
            out.index_add_(0, rows, y * topk_weights[rows, slots, None])
        return residual + out

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        return functional.silu(gate) * up

    def eager(self, name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs)."""
        return function(*inputs)

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """The rows asked for, in that order."""
        return x[rows.long()]

    def _own(self, weight: StoredArray) -> Tensor:
        """A float32 copy: the source's arrays are views of mapped files."""
        if isinstance(weight, np.ndarray):
            return torch.from_numpy(weight.astype(np.float32)).to(self.device)
        return weight.to(self.device, torch.float32, copy=True)

    def _round_weight(self, weight: StoredArray | QuantTensor, weight_format: str) -> Tensor:
        """What the format holds of it, float32; blocks are what they are."""
        if isinstance(weight, QuantTensor):
            return dequantize(weight).to(self.device)
        weight = self._own(weight)
        if weight_format in FLOAT_DTYPES:
            return weight.to(FLOAT_DTYPES[weight_format]).float()
        bits = {"int8": 8, "int4": 4}[weight_format]
        return fake_quantize(weight, bits, self.group_size, torch.bfloat16)


def _round_activations(x: Tensor, weight_format: str) -> Tensor:
    if weight_format in ("float32", "f16"):
        return x
    if weight_format == "bf16":
        return x.bfloat16().float()
    return fake_quantize(x, 8, ACTIVATION_GROUP, torch.float32)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half on the first 2 * cos.shape[-1] of every head; the rest passes."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _gather(cache: Tensor, pages: Tensor, seq_len: int) -> Tensor:
    """(seq_len, num_kv_heads, head_dim) float32 of one sequence."""
    return cache[pages].flatten(0, 1)[:seq_len].float()


def _top_ids(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values, best first, the lower index on ties (torch.topk promises no
    order)."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]
