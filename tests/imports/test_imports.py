# SPDX-License-Identifier: Apache-2.0
"""Every module imports on its own, without warnings: no import cycle hides behind another
module's import order.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

# Imports each module with none of our packages loaded. Third-party modules stay, since importing
# torch anew for each
# would take minutes, and so do extension modules, which cannot be loaded twice.
PROBE = """
import importlib, sys, warnings
for name in {preload!r}:
    importlib.import_module(name)
warnings.simplefilter("error")
ours = ("kt_kernel", "kt_kvcache", "kt_runtime", "kt_server")
for name in {modules!r}:
    for loaded in [m for m in sys.modules if m.split(".")[0] in ours and not m.endswith("._core")]:
        del sys.modules[loaded]
    importlib.import_module(name)
    print(name)
"""


def modules_of(package: str) -> list[str]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    found = pkgutil.walk_packages(spec.submodule_search_locations, f"{package}.")
    names = [m.name for m in found if not m.name.endswith(("._core", ".__main__"))]
    return [package, *sorted(names)]


@pytest.mark.parametrize(
    ("package", "preload"),
    [
        ("kt_kernel", ["numpy"]),
        ("kt_kvcache", ["numpy"]),
        ("kt_runtime", ["torch", "tokenizers", "jinja2"]),
        ("kt_server", ["torch", "aiohttp", "msgspec", "prometheus_client", "typer", "rich"]),
    ],
)
def test_every_module_imports_alone_and_without_warnings(package: str, preload: list[str]) -> None:
    modules = modules_of(package)
    assert len(modules) > 4
    probe = PROBE.format(modules=modules, preload=preload)
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == modules


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("kt_kernel", ["torch", "transformers", "kt_runtime", "kt_kvcache"]),
        ("kt_kvcache", ["torch", "transformers", "kt_runtime", "kt_kernel"]),
        ("kt_runtime.scheduler", ["torch"]),
        ("kt_runtime.text", ["torch"]),
    ],
)
def test_light_parts_stay_light(package: str, heavy: list[str]) -> None:
    code = f"import sys, {package}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
