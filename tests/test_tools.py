# SPDX-License-Identifier: Apache-2.0
"""The repository's own tools: that checks really fail, and that the setup refuses what it must
refuse.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
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


def test_run_tests_counts_a_suite_without_tests_as_failed(tmp_path: Path) -> None:
    run_tests = load("run_tests")
    (tmp_path / "tests").mkdir()
    assert run_tests.run_suite(tmp_path, [])[1] is False
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n")
    assert run_tests.run_suite(tmp_path, []) == ({"passed": 1}, True)
