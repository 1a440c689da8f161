# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: its public names, and its life without torch."""

import subprocess
import sys

import kt_kernel


def test_every_public_name_is_there():
    assert all(hasattr(kt_kernel, name) for name in kt_kernel.__all__)


def test_works_without_torch_and_never_asks_for_it():
    code = """
import sys
for name in ("torch", "ml_dtypes", "transformers"):
    sys.modules[name] = None  # importing it is an error
import numpy as np
from kt_kernel import Experts, MoE, ThreadPool

pool = ThreadPool(1)
rng = np.random.default_rng(0)
gate, up, down = (rng.standard_normal((2, 16, 16), np.float32) / 4 for _ in range(3))
moe = MoE(Experts.pack(gate, up, down, format="float32", pool=pool), top_k=1, pool=pool)
x, out = rng.standard_normal((3, 16), np.float32), np.empty((3, 16), np.float32)
moe.forward(x, np.array([[0], [1], [-1]], np.int32), np.ones((3, 1), np.float32), out)
for t, e in ((0, 0), (1, 1)):
    g = gate[e] @ x[t]
    inner = g / (1 + np.exp(-g)) * (up[e] @ x[t])
    np.testing.assert_allclose(out[t], down[e] @ inner, 1e-4, 1e-5)
assert not out[2].any()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
