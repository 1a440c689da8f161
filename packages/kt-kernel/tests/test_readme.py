# SPDX-License-Identifier: Apache-2.0
"""The README's examples run, in order, and its table of formats is true."""

import re
from pathlib import Path

import pytest

from kt_kernel.__main__ import main
from kt_kernel.formats import FORMATS
from kt_kernel.ops import Ops

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they write files
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)


def test_commands_run(capsys):
    commands = re.findall(r"^python -m kt_kernel(.*?) +#", README, re.MULTILINE)
    assert len(commands) == 4
    for options in commands:
        assert main([*options.split(), "--seconds=0.05"]) == 0


def test_formats_are_described_truly():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+)[^|]*\|[^|]*\| ([\d.]+)", README, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(FORMATS)
    for name, bits, percent in rows:
        assert float(bits) == FORMATS[name].bits_per_weight()
        assert float(percent) / 100 == pytest.approx(FORMATS[name].weight_error, rel=0.05)


def test_every_op_is_listed():
    public = {name for name in vars(Ops) if not name.startswith("_")}
    table = README[README.index("| op |") : README.index("## Formats")]
    assert public == set(re.findall(r"`(\w+)`(?=[,` ].*\|)", table)) & public
