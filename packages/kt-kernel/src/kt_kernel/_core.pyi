# SPDX-License-Identifier: Apache-2.0
"""C++ core of kt_kernel. Private: use kt_kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def available_targets() -> list[str]:
    """Targets this machine can run, best first."""

def compiled_targets() -> list[str]:
    """Targets this build contains, best first."""

def active_target() -> str:
    """Name of the target ops run on."""

def force_target(name: str) -> None:
    """Run ops on the named target from now on."""

def kernel_owner(target: str, kernel: str) -> str:
    """The target whose code `target` runs as `kernel`; empty: none."""

def negate_kernel(name: str) -> None:
    """
    Fault injection: the named kernel negates what it writes; an empty name restores.
    """

def kernel_names() -> list[str]:
    """Entries of the kernel table."""

def formats() -> list[dict[str, Any]]:
    """The facts of every weight format, in the order of the registry."""

class Router:
    """How experts and weights follow from router logits."""

    def __init__(
        self,
        score: str,
        select_on: str,
        num_groups: int,
        topk_groups: int,
        group_score: str,
        norm: str,
        norm_eps: float,
        scale: float,
        jitter_eps: float,
    ) -> None: ...

def allowed_cpus() -> list[int]:
    """CPU ids this thread may use, ascending."""

def usable_cores(allowed: Sequence[int], root: str = "") -> list[int]:
    """One CPU id of each physical core that affinity and quota leave to a pool."""

class ThreadPool:
    def __init__(self, num_threads: int = 0, cores: Sequence[int] = [], root: str = "") -> None:
        """root: what stands before /proc and /sys."""

    @property
    def num_threads(self) -> int: ...
    def op_counts(self) -> dict[str, int]:
        """How often each op ran on this pool."""

LAYOUT_VERSION: int
"""Version of the packed bytes of all formats."""

class Linear:
    def __init__(
        self,
        weight: object | None,
        dtype: str,
        scales: object | None,
        zeros: object | None,
        format: str,
        group_size: int,
        bias: object | None = None,
        pool: ThreadPool | None = None,
    ) -> None:
        """Pack weight (out_features, in_features); bias (out_features,) float32."""

    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def group_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Experts:
    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        gate: str | None,
        up: str,
        down: str,
        group_size: int,
    ) -> None: ...
    @staticmethod
    def from_file(
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        gate: str | None,
        up: str,
        down: str,
        group_size: int,
        fd: int,
        offset: int,
        nbytes: int,
        copy: bool,
        pool: ThreadPool | None,
    ) -> Experts:
        """Experts whose packed bytes are these of an open file, mapped or copied."""

    def bundles(self, projection: str) -> tuple[int, int]:
        """Bundles of one matrix and the bytes of one."""

    def format(self, projection: str) -> str: ...
    def bias(self, projection: str) -> NDArray[np.float32] | None:
        """A copy (num_experts, outputs), or None."""

    @property
    def packed(self) -> NDArray[np.uint8]:
        """All matrices, expert by expert, each gate, up, down. Read-only."""

    def put_bias(self, projection: str, bias: object | None) -> None:
        """The biases of one projection, (num_experts, outputs) float32."""

    @property
    def gated(self) -> bool: ...
    def put(
        self,
        expert: int,
        projection: str,
        weight: object | None,
        dtype: str,
        scales: object | None,
        zeros: object | None,
    ) -> None:
        """
        Pack one projection of one expert: gate, up (intermediate, hidden); down (hidden,
        intermediate).
        """

    def put_all(
        self, projection: str, weights: object | None, dtype: str, pool: ThreadPool
    ) -> None:
        """Pack one projection of all experts, whose rows follow each other."""

    @property
    def complete(self) -> bool: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Ticket:
    def wait(self) -> None:
        """Block until the call has run; raises its error."""

    def done(self) -> bool: ...

class MoE:
    def __init__(
        self,
        experts: Experts,
        activation: str,
        limit: float,
        alpha: float,
        top_k: int,
        max_tokens: int,
        pool: ThreadPool,
    ) -> None: ...
    def forward(
        self,
        hidden: object | None,
        hidden_dtype: str,
        topk_ids: object | None,
        topk_weights: object | None,
        out: object | None,
        out_dtype: str,
        accumulate: bool,
    ) -> None: ...
    def submit(
        self,
        hidden: object | None,
        hidden_dtype: str,
        topk_ids: object | None,
        topk_weights: object | None,
        out: object | None,
        out_dtype: str,
        accumulate: bool,
    ) -> Ticket:
        """Queue the call. Blocks while two calls of this MoE are in flight."""

    def set_resident(self, mask: object | None) -> None:
        """
        Skip the experts whose byte of mask (num_experts,) is not 0, from the next call on.
        """

    @property
    def top_k(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

class Stream:
    """Runs each op at once; the call returns when it is done."""

    def __init__(self, pool: ThreadPool) -> None: ...
    def embedding(
        self, ids: object | None, weight: object | None, format: str, out: object | None
    ) -> None: ...
    def rms_norm(
        self, x: object | None, weight: object | None, eps: float, out: object | None
    ) -> None:
        """
        x (num_tokens, hidden_size) or (num_tokens, num_heads, head_dim); out may be x.
        """

    def linear(
        self,
        x: object | None,
        linears: Sequence[Linear],
        outs: Sequence[object],
        accumulate: bool = False,
    ) -> None: ...
    def rope_write_kv(
        self,
        q: object | None,
        k: object | None,
        v: object | None,
        cos: object | None,
        sin: object | None,
        positions: object | None,
        slot_mapping: object | None,
        k_cache: object | None,
        v_cache: object | None,
        kv_dtype: str,
        k_scales: object | None = None,
        v_scales: object | None = None,
    ) -> None:
        """
        Rotate q in place; write rotated k and v to their cache slots (negative: nowhere).
        """

    def attention(
        self,
        q: object | None,
        k_cache: object | None,
        v_cache: object | None,
        kv_dtype: str,
        block_table: object | None,
        seq_lens: object | None,
        cu_seqlens_q: object | None,
        scale: float,
        out: object | None,
        window: int = 0,
        sinks: object | None = None,
        k_scales: object | None = None,
        v_scales: object | None = None,
    ) -> None: ...
    def activate(
        self,
        gate: object | None,
        up: object | None,
        out: object | None,
        kind: str,
        limit: float,
        alpha: float,
    ) -> None: ...
    def add(self, x: object | None, y: object | None, out: object | None) -> None: ...
    def route(
        self,
        logits: object | None,
        topk_ids: object | None,
        topk_weights: object | None,
        router: Router,
        bias: object | None,
        input_ids: object | None,
        hash_table: object | None,
    ) -> None:
        """Padding rows get ids -1 and weights 0."""

    def moe(
        self,
        moe: MoE,
        hidden: object | None,
        hidden_dtype: str,
        topk_ids: object | None,
        topk_weights: object | None,
        out: object | None,
        out_dtype: str,
        accumulate: bool,
    ) -> None: ...

class Graph(Stream):
    """
    Records ops; replay() runs them all as one job. Keeps pool, arrays and weights alive.
    """

    def __init__(self, pool: ThreadPool, num_rows: object | None = None) -> None:
        """
        num_rows: int32 (1,), read at replay: rows at or beyond it are not computed.
        """

    def replay(self) -> None: ...
    def __len__(self) -> int: ...

class ReadProbe:
    def __init__(self, pool: ThreadPool, nbytes: int) -> None: ...
    def seconds(self, threads: int) -> float:
        """Time in which so many workers read the whole buffer once."""

    @property
    def nbytes(self) -> int: ...

def peak_kinds() -> list[str]:
    """Kinds of multiply that the active target can measure."""

def peak_ops(kind: str) -> int:
    """Operations of one step on one worker."""

def peak_seconds(pool: ThreadPool, kind: str, threads: int, steps: int) -> float:
    """Time in which so many workers take `steps` steps each."""
