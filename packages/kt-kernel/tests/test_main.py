# SPDX-License-Identifier: Apache-2.0
"""`python -m kt_kernel`: what it prints, and that its self-check can fail."""

import pytest

from kt_kernel import isa
from kt_kernel.__main__ import main
from kt_kernel.formats import FORMATS
from kt_kernel.testing import negated


def test_overview_names_targets_formats_and_threads_and_passes(capsys):
    before = isa.active()
    assert main([]) == 0
    text = capsys.readouterr().out
    assert f"target    {before} " in text
    assert "threads   " in text
    for name in FORMATS:
        assert f"format    {name}: " in text
        for target in isa.available():
            assert f"check     moe {name} {target}: ok" in text
    assert isa.active() == before


@pytest.mark.parametrize("kernel", ["gemm_int4", "combine", "activate", "prepare_rows"])
def test_a_broken_kernel_is_found(kernel, capsys):
    with negated(kernel):
        assert main([]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_matrix_has_a_line_for_every_kernel(capsys):
    assert main(["--matrix"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kernel", *isa.compiled()]
    assert [line.split()[0] for line in lines[1:]] == isa.kernels()
    assert "active" in lines[1].split()
