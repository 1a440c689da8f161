# SPDX-License-Identifier: Apache-2.0
"""CPU kernels for Mixture-of-Experts language models: the public names, nothing else.

No torch here: arrays come in through DLPack or as numpy (see `kt_kernel.arrays`).
"""

from kt_kernel import formats, isa, probe
from kt_kernel.activation import Activation
from kt_kernel.experts import Experts
from kt_kernel.graph import Graph
from kt_kernel.linear import Linear
from kt_kernel.moe import MoE, Ticket
from kt_kernel.ops import Stream
from kt_kernel.router import Router
from kt_kernel.thread_pool import ThreadPool, usable_cores

__all__ = (
    "Activation",
    "Experts",
    "Graph",
    "Linear",
    "MoE",
    "Router",
    "Stream",
    "ThreadPool",
    "Ticket",
    "formats",
    "isa",
    "probe",
    "usable_cores",
)
