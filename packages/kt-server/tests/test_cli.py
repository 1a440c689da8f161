# SPDX-License-Identifier: Apache-2.0
"""The `kt` command: versions, doctor, and what a user sees of a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kt_runtime import inspect
from kt_server import __version__
from kt_server.cli import read_early
from kt_server.cli.commands import app

runner = CliRunner()


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith(f"kt {__version__} (kt-runtime ")


@pytest.mark.parametrize("command", ["serve", "chat", "run", "bench", "doctor"])
def test_help_loads_nothing_that_takes_time(command: str) -> None:
    code = (
        "import sys; from kt_server.cli.commands import app\n"
        f"try: app(['{command}', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'aiohttp', 'numpy', 'kt_kernel'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


@pytest.mark.parametrize("words", [[], ["--pack-cache", "/c"], ["--pack-cache=/c"]])
def test_a_gguf_file_is_read_before_the_commands_are_imported(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    asked: list[Path] = []
    advised = threading.Event()

    def advise(fd: int, *_: int) -> None:
        asked.append(Path(f"/proc/self/fd/{fd}").resolve())
        advised.set()

    monkeypatch.setattr(os, "posix_fadvise", advise)
    read_early(["serve", str(model), str(tmp_path / "absent.gguf"), "--port", "0", *words])
    assert advised.wait(5 if not words else 0.1) == (not words)
    assert asked == ([] if words else [model.resolve()])
    # Whatever this module imports delays the reading.
    code = "import sys, kt_server.cli; assert not {'typer', 'kt_runtime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "no-such-model"], "[model] model must be a directory"),
        (["run", __file__, "hi"], "[model] model must be a directory with a config.json, a GGUF"),
        (["chat", "no-such-model", "hi"], "[model] model must be a directory"),
        (
            ["serve", "x", "--kv-cpu-memory-gb", "-1"],
            "[config] kv_cpu_memory_gb must be positive and finite; got -1",
        ),
        (
            ["serve", "x", "--kv-page-size", "0"],
            "[config] kv_page_size must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-c", "from kt_server.cli import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"kt: {message}")
    assert result.stderr.count("\n") == 1


def test_an_unknown_weight_format_lists_the_known_ones() -> None:
    result = runner.invoke(app, ["serve", "x", "--weight-format", "int3"])
    assert result.exit_code == 2
    assert "'native', 'float32', 'bf16', 'int8', 'int4'" in result.output


def report(problems: list[inspect.Problem]) -> inspect.Report:
    return inspect.Report(
        cpu="A CPU",
        python="3.11.7",
        targets_available=["avx2", "scalar"],
        target_active="avx2",
        num_threads=2,
        memory_total=8 << 30,
        memory_available=4 << 30,
        kt_home=Path("/somewhere"),
        disk_free=10 << 30,
        versions={"kt-kernel": "0.1.0", "numpy": None},
        torch_build="2.13.0+cpu, no CUDA device",
        models={"tiny": None, "mine": Path("/somewhere/models/mine")},
        problems=problems,
    )


def test_doctor_prints_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "doctor", lambda: report([]))
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    rows = dict(line.split("  ", 1) for line in lines if "  " in line)
    assert {key: value.strip() for key, value in rows.items()} == {
        "CPU": "A CPU",
        "kernel targets": "avx2 (active), scalar",
        "threads": "2",
        "memory": "4.0 of 8.0 GiB free",
        "KT_HOME": "/somewhere (10.0 GiB free)",
        "Python": "3.11.7",
        "torch build": "2.13.0+cpu, no CUDA device",
        "kt-kernel": "0.1.0",
        "numpy": "not installed",
        "model tiny": "built on first use",
        "model mine": "/somewhere/models/mine",
    }
    assert lines[-1] == "no problems found"


def test_doctor_fails_when_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = inspect.Problem("torch does not load", "pip install torch")
    monkeypatch.setattr(inspect, "doctor", lambda: report([problem]))
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "problem: torch does not load\n         pip install torch" in result.output
