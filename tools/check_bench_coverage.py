# SPDX-License-Identifier: Apache-2.0
"""Fails when a public kernel op has no benchmark.

Reads sources only: the public methods of kt-kernel's classes against the calls in
tools/benchmarks/bench_kernel_*.py. Whether a benchmark measures well is for its reader to judge.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "packages" / "kt-kernel" / "src" / "kt_kernel"
BENCHMARKS = ROOT / "tools" / "benchmarks"
CLASSES = {
    "ops.py": "Ops",
    "graph.py": "Graph",
    "moe.py": "MoE",
    "linear.py": "Linear",
    "experts.py": "Experts",
}
# Methods that compute nothing, with the reason.
EXEMPT = {
    "empty": "allocates",
    "load": "as fast as the disk; docs/benchmarks.md has figures",
    "save": "as fast as the disk; docs/benchmarks.md has figures",
    "put_all": "what `pack`, which is measured, does for each projection",
    "put_bias": "copies one float per output",
    "set_resident": "copies one byte per expert",
}


def public_methods(source: str, class_name: str) -> set[str]:
    """Names of the public methods (not properties) of one class."""
    found = set()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or node.name != class_name:
            continue
        for item in node.body:
            if not isinstance(item, ast.FunctionDef) or item.name.startswith("_"):
                continue
            decorators = {d.id for d in item.decorator_list if isinstance(d, ast.Name)}
            if "property" not in decorators:
                found.add(item.name)
    return found


def called_methods(source: str) -> set[str]:
    """Names of all methods that a source calls."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}


def missing(package: Path, benchmarks: Path) -> set[str]:
    """Public methods that no kernel benchmark calls."""
    public: set[str] = set()
    for file, class_name in CLASSES.items():
        methods = public_methods((package / file).read_text(encoding="utf-8"), class_name)
        if not methods:
            raise SystemExit(f"{file}: class {class_name} with public methods not found")
        public |= methods
    called: set[str] = set()
    for path in [*benchmarks.glob("bench_kernel_*.py"), benchmarks / "inputs.py"]:
        called |= called_methods(path.read_text(encoding="utf-8"))
    return public - called - set(EXEMPT)


def main() -> int:
    """List the ops without a benchmark on stderr; 1 if there are any."""
    names = missing(PACKAGE, BENCHMARKS)
    for name in sorted(names):
        print(f"no benchmark in {BENCHMARKS.name}/bench_kernel_*.py calls {name}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
