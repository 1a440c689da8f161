# SPDX-License-Identifier: Apache-2.0
"""Implementations of protocols.Ops: torch_ops (plain PyTorch, the oracle) and kt_ops
(kt_kernel)."""
