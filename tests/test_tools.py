# SPDX-License-Identifier: Apache-2.0
"""The repository's own tools: that checks really fail, and that the setup refuses what it must
refuse.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_make_alone_lists_every_target() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "run", "serve", "test", "test-fast", "check", "bench", "clean"):
        assert f"make {target} " in result.stdout


def test_setup_refuses_a_torch_that_would_bring_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    setup_env = load("setup_env")
    plan = {"install": [{"metadata": {"name": n}} for n in ("torch", "nvidia-cublas", "sympy")]}
    installed: list[tuple[object, ...]] = []

    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--dry-run" in command
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(plan))

    monkeypatch.setattr(setup_env.subprocess, "run", fake_run)
    monkeypatch.setattr(setup_env, "pip", lambda *arguments: installed.append(arguments))
    with pytest.raises(setup_env.SetupError, match="CUDA build"):
        setup_env.install_torch()
    assert installed == []
    plan["install"].pop(1)
    setup_env.install_torch()
    assert installed == [("install", "torch==2.13.0")]


def test_setup_names_the_system_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    setup_env = load("setup_env")
    monkeypatch.setattr(setup_env.shutil, "which", lambda _: None)
    monkeypatch.setattr(setup_env.sysconfig, "get_path", lambda _: "/nowhere")
    with pytest.raises(setup_env.SetupError, match=r"apt-get install python3-dev g\+\+"):
        setup_env.check_prerequisites()


def test_size_check_flags_long_files_and_missing_licence_lines(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "check_size.py").write_bytes((ROOT / "tools/check_size.py").read_bytes())
    licence = "# SPDX-License-Identifier: Apache-2.0\n"
    (tmp_path / "fine.py").write_text(licence + "x = 1\n")
    check = [sys.executable, tmp_path / "tools" / "check_size.py"]
    assert subprocess.run(check, capture_output=True).returncode == 0
    (tmp_path / "long.py").write_text(licence + "x = 1\n" * 600)
    (tmp_path / "bare.py").write_text("x = 1\n")
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 1
    assert "long.py: 601 lines" in result.stderr
    assert "bare.py" in result.stderr
    assert "fine.py" not in result.stderr


GOOD = "def test_good():\n    assert True\n"
BAD = "def test_bad():\n    assert False\n"


@pytest.mark.parametrize(
    ("source", "passed", "failed", "ok"),
    [
        ("", 0, 1, False),
        (GOOD, 1, 0, True),
        (GOOD + BAD, 1, 1, False),
        ("import nothing_of_that_name\n", 0, 1, False),
        (GOOD + "def test_crash():\n    import os\n    os.abort()\n", 0, 1, False),
        (GOOD + BAD + "def test_broken(no_such_fixture): ...\n", 1, 2, False),
        (GOOD + "def test_says():\n    print('9 failed in 1.0s')\n    assert 0\n", 1, 1, False),
    ],
    ids=["empty", "good", "bad", "collection error", "crash", "fixture error", "misleading output"],
)
def test_run_tests_counts_what_happened(
    tmp_path: Path, source: str, passed: int, failed: int, ok: bool
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(source)
    result = load("run_tests").run_suite(str(tmp_path), [])
    assert (result.passed, result.failed, result.state == "ok") == (passed, failed, ok)


@pytest.mark.parametrize(
    "question", ['say "hi" to $HOME', "`id` $(HOME) $5 äöü", "--help", "a $(b"]
)
def test_make_passes_the_question_as_it_was_typed(tmp_path: Path, question: str) -> None:
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    interpreter.chmod(0o755)
    make = ["make", "-s", f"VENV={tmp_path}", "PYTHON=true", "run"]
    for extra, env in (([], {"PROMPT": question}), ([f"PROMPT={question}"], {})):
        result = subprocess.run(
            [*make, *extra],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": os.defpath, **env},
        )
        assert f"--prompt={question}" in result.stdout.splitlines()


def test_setup_goes_on_where_it_stopped_and_sees_what_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env = load("setup_env")
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("pip", "numpy"):
        (site / f"{name}-1.0.dist-info").mkdir(parents=True)
    ran: list[str] = []
    broken = {"requirements"}

    def steps() -> list[tuple[str, str, Callable[[], None]]]:
        def action(name: str) -> None:
            if name in broken:
                raise setup_env.SetupError("no network")
            ran.append(name)

        names = (setup_env.VENV_STEP, "requirements", "install")
        return [(name, "key", partial(action, name)) for name in names]

    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(setup_env, "steps", steps)
    with pytest.raises(setup_env.SetupError):
        setup_env.refresh()
    assert ran == [setup_env.VENV_STEP]
    broken.clear()
    assert setup_env.refresh()
    assert ran == [setup_env.VENV_STEP, "requirements", "install"]
    assert not setup_env.refresh()
    (site / "numpy-1.0.dist-info").rmdir()
    assert setup_env.refresh()
    assert ran[3:] == ["requirements", "install"]
    (tmp_path / "stamp.json").write_text('{"done": ')  # cut short
    assert setup_env.refresh()
    assert ran[5:] == [setup_env.VENV_STEP, "requirements", "install"]


def test_the_simulated_scheduler_keeps_its_limit_with_chunks_that_follow_it() -> None:
    tool = load("simulate_scheduler")
    machine = tool.Machine()
    largest = []
    for max_itl_s in (0.1, 0.4):
        steps = list(tool.steps(machine, tool.probed(machine), 512, max_itl_s, 1024))
        assert sum(size for size, _ in steps) == 1024
        assert max(seconds for _, seconds in steps) < max_itl_s * 1.05
        largest.append(max(size for size, _ in steps))
    assert largest[1] > 4 * largest[0]
