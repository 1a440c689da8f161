# SPDX-License-Identifier: Apache-2.0
"""TorchOps and KtOps are two executions of one Protocol: same calls, same parameter names."""

from __future__ import annotations

import inspect

import pytest

from kt_runtime.ops.kt_ops import KtOps
from kt_runtime.ops.torch_ops import TorchOps
from kt_runtime.protocols import Ops, Packer

CALLS = sorted(name for name in {*vars(Packer), *vars(Ops)} if not name.startswith("_"))


@pytest.mark.parametrize("implementation", [TorchOps, KtOps])
@pytest.mark.parametrize("call", CALLS)
def test_ops_offer_the_protocol_s_calls(implementation: type, call: str) -> None:
    wanted = inspect.signature(getattr(Ops, call)).parameters
    offered = inspect.signature(getattr(implementation, call)).parameters
    assert list(offered) == list(wanted)


def test_the_protocol_is_about_the_size_that_was_meant() -> None:
    assert 12 <= len(CALLS) <= 25
