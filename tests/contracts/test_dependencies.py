# SPDX-License-Identifier: Apache-2.0
"""Each package declares exactly what it imports, as ranges: `pip install` of one package brings
what it needs.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "packages"
DISTRIBUTIONS = {"yaml": "pyyaml"}  # of modules that are not called as they are
NAMES = ("kt-kernel", "kt-kvcache", "kt-runtime", "kt-server")


def declared(package: str, *, extras: bool = False) -> dict[str, str]:
    project = tomllib.loads((PACKAGES / package / "pyproject.toml").read_text())["project"]
    requirements = list(project.get("dependencies", []))
    if extras:
        for extra in project.get("optional-dependencies", {}).values():
            requirements += extra
    found = (re.match(r"([A-Za-z0-9._-]+)\s*(.*)", d) for d in requirements)
    return {m[1].lower().replace("_", "-"): m[2] for m in found if m}


def imported(package: str, *, lazily: bool = False) -> set[str]:
    """Modules that importing the package's files takes; lazily: those that only calls take, too."""
    own = package.replace("-", "_")
    modules: set[str] = set()
    for file in (PACKAGES / package / "src").rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        inside = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if node in inside and not lazily:
                continue
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.split(".")[0])
    modules -= {*sys.stdlib_module_names, own}
    return {DISTRIBUTIONS.get(m, m.replace("_", "-")) for m in modules}


@pytest.mark.parametrize("package", NAMES)
def test_imports_are_declared(package: str) -> None:
    assert imported(package) - set(declared(package)) == set()
    # What only a function imports may come with an extra.
    assert imported(package, lazily=True) - set(declared(package, extras=True)) == set()


@pytest.mark.parametrize("package", NAMES)
def test_requirements_are_ranges_that_users_can_share(package: str) -> None:
    all_declared = declared(package, extras=True)
    pinned = {name: rule for name, rule in all_declared.items() if "==" in rule}
    assert pinned == {}
    assert declared(package), "every package needs at least numpy or another package"


def test_kernel_needs_numpy_and_safetensors_and_nothing_heavier() -> None:
    assert set(declared("kt-kernel")) == {"numpy", "safetensors"}
