# SPDX-License-Identifier: Apache-2.0
"""`import kt_runtime` is light, and everything it names is there."""

import subprocess
import sys

import pytest

import kt_runtime


def test_all_names_resolve():
    for name in kt_runtime.__all__:
        assert getattr(kt_runtime, name).__name__ == name
    assert kt_runtime.__version__
    assert set(kt_runtime.__all__) < set(dir(kt_runtime))
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        kt_runtime.Motor  # noqa: B018 - the access is what is tested


def test_requests_can_be_made_without_torch():
    code = (
        "import sys; from kt_runtime import EngineConfig, Request, SamplingParams;"
        "import kt_runtime.protocols; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
