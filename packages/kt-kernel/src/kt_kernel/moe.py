# SPDX-License-Identifier: Apache-2.0
"""The Mixture-of-Experts layer: routed experts over a batch of tokens. Routing is `Stream.route`.

y[t] = sum over slots s with topk_ids[t][s] >= 0 of
       topk_weights[t][s] * down(activation(gate(x[t]), up(x[t])))
with the projections gate, up and down, and their biases, of expert topk_ids[t][s].
"""

from typing import Any

import numpy as np

from kt_kernel import _core
from kt_kernel.activation import Activation, core_arguments
from kt_kernel.arrays import typed
from kt_kernel.experts import Experts
from kt_kernel.scalars import int32
from kt_kernel.thread_pool import ThreadPool

__all__ = ("MoE", "Ticket")

Ticket = _core.Ticket
"""A call in flight: `done()` polls, `wait()` blocks without the GIL and raises the call's error.

It owns references to the arrays and the MoE; dropping it waits.
"""


def call_arguments(
    op: str,
    hidden: object,
    topk_ids: object,
    topk_weights: object,
    out: object,
    dtype: str | None,
) -> tuple[object, str, object, object, object, str]:
    """The arrays of one call as the core takes them: `hidden` and `out` each with its dtype."""
    x, x_dtype = typed(op, "hidden", hidden, dtype)
    y, y_dtype = typed(op, "out", out, dtype)
    return x, x_dtype, topk_ids, topk_weights, y, y_dtype


class MoE:
    """Computes the routed experts of one layer. Scratch for `max_tokens` is allocated here.

    Args:
        experts: complete packed experts; may be shared by several MoE objects.
        top_k: experts per token: the width of `topk_ids`.
        activation: what lies between gate, up and down; a name stands for `Activation(name)`.
        max_tokens: most tokens of one call.
        pool: the threads that compute.

    A row of the result depends on nothing but its own token: not on the other rows, on their number
    or on the number of threads. A NaN or Inf row gives a non-finite row and touches no other.

    Raises:
        ValueError: incomplete experts, sizes below 1, max_tokens * top_k beyond int32, an unknown
            activation, or one that wants a gate which the experts lack (or the reverse).
        MemoryError: the scratch does not fit in memory.
    """

    def __init__(
        self,
        experts: Experts,
        *,
        top_k: int,
        activation: Activation | str = "silu",
        max_tokens: int = 4096,
        pool: ThreadPool,
    ) -> None:
        self.experts = experts
        self._core = _core.MoE(
            experts._core,
            *core_arguments(activation),
            int32("moe", "top_k", top_k),
            int32("moe", "max_tokens", max_tokens),
            pool._core,
        )

    def forward(
        self,
        hidden: object,
        topk_ids: object,
        topk_weights: object,
        out: object,
        accumulate: bool = False,
        *,
        dtype: str | None = None,
    ) -> None:
        """Compute one call and wait for it. Releases the GIL. Thread-safe.

        Args:
            hidden: (num_tokens, hidden_size) float32, bf16 or f16; num_tokens <= max_tokens.
            topk_ids: (num_tokens, top_k) int32 expert ids; -1 skips the slot. An id may repeat.
            topk_weights: (num_tokens, top_k) float32.
            out: (num_tokens, hidden_size) float32, bf16 or f16, written; overlaps no input.
            accumulate: add to `out` instead of overwriting it.
            dtype: "bf16" if `hidden` or `out` is bare uint16 bits.

        Raises:
            ValueError: wrong dtype, layout or shape, or an id outside [-1, num_experts); `out` is
                then unchanged.
        """
        self._core.forward(
            *call_arguments("moe.forward", hidden, topk_ids, topk_weights, out, dtype), accumulate
        )

    def submit(
        self,
        hidden: object,
        topk_ids: object,
        topk_weights: object,
        out: object,
        accumulate: bool = False,
        *,
        dtype: str | None = None,
    ) -> Ticket:
        """Start one call; arguments as `forward`. Two may be in flight, a third blocks.

        The arrays must not change, nor `out` be read, before `wait`. Calls finish in order.

        Returns:
            The ticket to `wait` for. Bad ids are reported there.
        """
        return self._core.submit(
            *call_arguments("moe.submit", hidden, topk_ids, topk_weights, out, dtype), accumulate
        )

    def wait(self, ticket: Ticket) -> None:
        """Block until a submitted call has finished. Releases the GIL; raises the call's error."""
        ticket.wait()

    def set_resident(self, mask: object) -> None:
        """Say which experts are held elsewhere (on the accelerator) and are skipped here.

        Args:
            mask: (num_experts,) bool or uint8, nonzero: skipped. Copied; valid from the next call.
        """
        array: Any = mask
        if str(getattr(array, "dtype", "")) in ("bool", "torch.bool"):
            try:
                array = np.from_dlpack(array).view(np.uint8)
            except (BufferError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    "[moe.set_resident] mask must be (num_experts,) bool or uint8 on the CPU; "
                    f"got {type(mask).__name__}: {error}"
                ) from error
        self._core.set_resident(array)

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return self._core.top_k

    @property
    def max_tokens(self) -> int:
        """Most tokens of one call."""
        return self._core.max_tokens
