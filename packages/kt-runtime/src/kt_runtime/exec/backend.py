# SPDX-License-Identifier: Apache-2.0
"""Which Ops run the model, and how they are recorded; loading.py chooses between kt and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kt_runtime.config import EngineConfig
from kt_runtime.exec.cpu_graph import GraphsOf, ReplayableGraph
from kt_runtime.protocols import Ops

if TYPE_CHECKING:
    from kt_kernel import ThreadPool


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs the model.

    Attributes:
        ops: runs eagerly.
        graphs_of: makes graphs and the Ops that record into them; None where nothing is recorded.
        kernel_target: name of the instruction set in use.
        op_counts: how often each kernel op ran.
        version: of the code that computes: another one may round in another way.
    """

    ops: Ops
    graphs_of: GraphsOf | None
    kernel_target: Callable[[], str]
    op_counts: Callable[[], Mapping[str, int]]
    version: str


def open_backend(config: EngineConfig, pool: ThreadPool | None) -> Backend:
    """What runs the model that `loading.pack_model` packed. Imports only what the config names.

    With "kt" torch is left one intra-op thread, in the whole process: compute belongs to one kt
    pool, and two pools on the same cores would wait for each other.

    Args:
        config: the settings.
        pool: the threads that packed the model's weights and compute with them; None: torch's.
    """
    if pool is None:
        from kt_runtime.ops.torch_ops import TorchOps

        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        ops = TorchOps(group_size=config.group_size)
        return Backend(ops, None, lambda: "torch", dict, f"torch {torch.__version__}")

    from kt_kernel import isa
    from kt_runtime.ops.kt_ops import KtOps
    from kt_runtime.ops.recording import Recording, RowBuffers

    torch.set_num_threads(1)
    kt_ops = KtOps(pool, config.max_batch_tokens, config.group_size)

    def graphs_of(num_rows: Tensor, capacity: int) -> Callable[[], tuple[ReplayableGraph, Ops]]:
        buffers = RowBuffers(capacity)

        def new_graph() -> tuple[ReplayableGraph, Ops]:
            recording = Recording(pool, num_rows, buffers)
            return recording, kt_ops.recorder(recording)

        return new_graph

    kernels = f"kt-kernel {version('kt-kernel')}"
    return Backend(kt_ops, graphs_of, isa.active, pool.op_counts, kernels)
