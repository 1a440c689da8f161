# SPDX-License-Identifier: Apache-2.0
"""`python -m kt_kernel`: what it prints, for people and programs."""

import json
import re
import subprocess
import sys

import pytest

from kt_kernel import isa, machine, probe
from kt_kernel.__main__ import main
from kt_kernel.formats import FORMATS
from kt_kernel.testing import negated


def output(capsys, *arguments, status=0):
    assert main(arguments) == status
    return capsys.readouterr().out


def test_the_overview_names_machine_targets_threads_and_formats(capsys):
    facts = dict(
        line.split(maxsplit=1)
        for line in output(capsys, "--threads=1").replace("huge pages", "huge_pages").splitlines()
    )
    assert facts["cpu"] == machine.cpu_name()
    assert facts["threads"] == "1"
    assert facts["huge_pages"] == machine.huge_pages()
    assert f"{isa.active()} (active)" in facts["targets"]
    assert all(target in facts["targets"] for target in isa.compiled())
    assert all(name in facts["formats"] for name in FORMATS)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", facts["version"])


def test_the_overview_is_short(capsys):
    lines = output(capsys).splitlines()
    assert len(lines) <= 10


def test_the_matrix_has_a_line_for_every_kernel_and_a_column_for_every_target(capsys, target):
    lines = [line.split() for line in output(capsys, "--matrix").splitlines()]
    assert lines[0] == ["kernel", *isa.compiled()]
    assert lines[1].count("active") == 1
    assert [line[0] for line in lines[2:]] == isa.kernels()
    column = isa.compiled().index("scalar") + 1
    assert all(line[column] == "native" for line in lines[2:])


def test_the_matrix_tells_inherited_and_missing_kernels_from_native_ones(capsys, monkeypatch):
    first, *others = isa.compiled()
    owners = {"own": first, "borrowed": others[0], "none": None}
    rows = {kernel: dict.fromkeys(isa.compiled(), owner) for kernel, owner in owners.items()}
    monkeypatch.setattr(isa, "matrix", lambda: rows)
    lines = [line.split() for line in output(capsys, "--matrix").splitlines()]
    assert [(line[0], line[1]) for line in lines[2:]] == [
        ("own", "native"),
        ("borrowed", "inherited"),
        ("none", "–"),
    ]


def test_the_check_passes_and_says_what_it_checked(capsys):
    before = isa.active()
    *lines, verdict = output(capsys, "--check").splitlines()
    assert verdict == f"{len(lines) - 1} checks ok"
    assert all(line.endswith(" ok") for line in lines[1:])
    assert isa.active() == before


def test_a_failed_check_is_the_exit_status_and_a_clear_line(capsys):
    with negated("gemm_int4"):
        text = output(capsys, "--check", status=1)
    failed = [line.split()[:3] for line in text.splitlines() if line.endswith(" FAILED")]
    assert failed == [[op, "int4", each] for op in ("linear", "moe") for each in isa.available()]
    assert text.splitlines()[-1].startswith(f"FAILED: {len(failed)} of ")


def test_the_probe_prints_every_limit_of_the_target(capsys, target):
    lines = output(capsys, "--probe", "--seconds=0.05", "--threads=2").splitlines()
    assert "2 threads" in lines[0]
    measured = [line for line in lines[1:-1] if "–" not in line]
    assert len(measured) == 1 + len(probe.kinds())
    assert all(re.search(r"\d / \d+\.\d / .* x \d+\.\d\d$", line) for line in measured)
    assert target in lines[-1]


def test_everything_at_once_as_json(capsys):
    text = output(capsys, "--matrix", "--check", "--probe", "--seconds=0.05", "--json")
    report = json.loads(text)
    assert list(report) == ["matrix", "check", "probe"]
    assert report["matrix"] == isa.matrix()
    assert all(check["passed"] for check in report["check"])
    assert report["probe"]["read_gb_per_s"]["one_thread"]["median"] > 0


def test_the_overview_as_json(capsys):
    report = json.loads(output(capsys, "--json", "--threads=1"))
    assert report["overview"]["threads"] == 1
    assert list(report["overview"]["formats"]) == list(FORMATS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seconds=0", "--seconds: must be a positive number; got '0'"),
        ("--seconds=soon", "--seconds: must be a positive number; got 'soon'"),
        ("--threads=0", "num_threads must be at least 1; got 0"),
    ],
)
def test_bad_options_are_one_line_and_status_2(capsys, argument, message):
    with pytest.raises(SystemExit) as stop:
        main([argument])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "kt_kernel", "--matrix"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "route" in result.stdout


def test_a_reader_that_leaves_early_sees_no_traceback():
    command = [sys.executable, "-m", "kt_kernel", "--matrix"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
