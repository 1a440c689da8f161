# SPDX-License-Identifier: Apache-2.0
"""`python -m kt_kernel`: what this build and machine can do, with a numeric self-check.

No benchmark. `--matrix` prints kernel x target. Exit status 1 if a self-check fails.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from kt_kernel import Experts, MoE, ThreadPool, isa
from kt_kernel.formats import FORMATS, WeightFormat

# Ragged on purpose: no multiple of 8, 16 or 32, so that every tail is exercised.
_NUM_EXPERTS, _HIDDEN, _INTERMEDIATE, _TOP_K, _TOKENS = 4, 83, 51, 2, 5


def self_check(weight_format: WeightFormat, pool: ThreadPool) -> tuple[float, float]:
    """Compare one small MoE on the active target with numpy in float64 from the unpacked weights.

    Returns:
        RMS error over RMS of the result, and the largest value that rounding explains.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_TOKENS, _HIDDEN), np.float32)
    gate, up = (
        rng.standard_normal((_NUM_EXPERTS, _INTERMEDIATE, _HIDDEN), np.float32) / _HIDDEN**0.5
        for _ in range(2)
    )
    shape = (_NUM_EXPERTS, _HIDDEN, _INTERMEDIATE)
    down = rng.standard_normal(shape, np.float32) / _INTERMEDIATE**0.5
    ids = np.stack([rng.permutation(_NUM_EXPERTS)[:_TOP_K] for _ in range(_TOKENS)])
    weights = rng.random((_TOKENS, _TOP_K), np.float32)

    experts = Experts.pack(gate, up, down, format=weight_format.name, pool=pool)
    out = np.empty_like(x)
    MoE(experts, top_k=_TOP_K, max_tokens=_TOKENS, pool=pool).forward(
        x, ids.astype(np.int32), weights, out
    )

    expected = np.zeros((_TOKENS, _HIDDEN))
    for t in range(_TOKENS):
        for e, weight in zip(ids[t], weights[t], strict=True):
            g = gate[e].astype(np.float64) @ x[t]
            inner = g / (1 + np.exp(-g)) * (up[e].astype(np.float64) @ x[t])
            expected[t] += weight * (down[e].astype(np.float64) @ inner)
    error = float(np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2)))
    # Five independent roundings (three weights, two activations), none worse than the weights'
    # own; silu passes on at most 1.1 of a relative error. The factor 2 covers the small sample, the
    # addend float32 summation.
    return error, 2 * 1.1 * 5**0.5 * weight_format.weight_error + 1e-6


def _print_matrix() -> None:
    targets = isa.compiled()
    print("kernel".ljust(16) + "".join(target.ljust(12) for target in targets))
    state = {
        target: "active"
        if target == isa.active()
        else ("available" if target in isa.available() else "compiled")
        for target in targets
    }
    for kernel in isa.kernels():
        print(kernel.ljust(16) + "".join(state[target].ljust(12) for target in targets))


def _print_overview(pool: ThreadPool) -> None:
    print(f"target    {isa.active()} (available: {', '.join(isa.available())}; ", end="")
    print(f"compiled: {', '.join(isa.compiled())})")
    print(f"threads   {pool.num_threads}")
    for weight_format in FORMATS.values():
        group = f", groups of {weight_format.group_sizes}" if weight_format.group_sizes else ""
        bits = f"{weight_format.bits_per_weight():g} bits per weight"
        print(f"format    {weight_format.name}: {bits}, {weight_format.activation_mode}{group}")


def _self_checks(pool: ThreadPool) -> bool:
    passed = True
    before = isa.active()
    try:
        for target in isa.available():
            isa.force(target)
            for weight_format in FORMATS.values():
                error, bound = self_check(weight_format, pool)
                good = error <= bound  # False for NaN
                passed = passed and good
                verdict = "ok" if good else "FAILED"
                print(
                    f"check     moe {weight_format.name} {target}: {verdict}, "
                    f"relative error {error:.1e} (bound {bound:.1e})"
                )
    finally:
        isa.force(before)
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the overview or the matrix; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kt_kernel", description=main.__doc__)
    parser.add_argument("--matrix", action="store_true", help="print kernel x target and exit")
    if parser.parse_args(arguments).matrix:
        _print_matrix()
        return 0
    pool = ThreadPool()
    _print_overview(pool)
    return 0 if _self_checks(pool) else 1


if __name__ == "__main__":
    sys.exit(main())
